"""PaDiMs of other packages, each in its own virtual environment, to be timed beside flawmap's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from flawmap.errors import ParameterError

PEERS = ("anomalib", "anomavision")
WORKER = Path(__file__).with_name("peer_worker.py")


def find_peers(folder: Path) -> dict[str, Path]:
    """The Python of each package with an environment below a folder. ParameterError if there is none."""
    inside = Path("Scripts", "python.exe") if sys.platform == "win32" else Path("bin", "python")
    found = {name: folder / name / inside for name in PEERS if (folder / name / inside).exists()}
    if not found:
        raise ParameterError(
            f"{folder} holds no virtual environment named {' or '.join(PEERS)}; `make bench-peers` makes them"
        )
    return found


class Peer:
    """One package's PaDiM of ResNet-18 in a process of its own."""

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        command = [str(python), str(WORKER), name]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: str, *arguments: object) -> Any:  # noqa: ANN401 (JSON)
        """The answer to a request, a method of `peer_worker.Worker`; it takes a tenth of a millisecond by itself."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the process has no pipes")
        try:
            self._process.stdin.write(json.dumps([request, *arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise ParameterError(f"{self.name} has died; its environment may be damaged: run `make bench-peers` again")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise ParameterError(f"{self.name} cannot do this: {answer['error'][:300]}")
        return answer
