"""Results of benchmark runs: a file of JSON lines that survives a kill at any moment.

The first line holds the settings; each further line is one run, written and synchronised with the disk before the next
run begins. Reopening cuts off an incomplete last line, and that run is repeated. Any other damage is an error, and so
is a foreign file. A lock, which the system releases when a process ends, keeps a second process out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from flawmap.errors import ParameterError
from flawmap.files import open_file

RUNS_FILE = "runs.jsonl"
BEGINNING = b'{"format": '
"""First bytes of every results file."""

RunKey = tuple[str, str, str, int]
"""Data set, class, system, seed."""


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class Run:
    """One system, fitted on one class and measured there.

    Attributes:
        dataset: such as mvtec_ad; "speed" for measurements without data.
        category: the class or scene.
        system: the row of the tables.
        seed: seed of the draw, and for Rd-MVTec AD of the rotations.
        figures: figures by name, such as image_auroc; None where one is not defined.
        n_train, n_test: images fitted on and scored.
        curves: curves by name, at evenly spread false-positive rates.
        seconds: duration, without the backbone where features are shared.
        data: digest of the class's files; empty in files of earlier versions, and for "speed".
        n_without_mask: anomalous images whose mask is missing or empty, left out of the pixel figures.
        n_skipped: images that could not be read and were left out.
    """

    dataset: str
    category: str
    system: str
    seed: int
    figures: Mapping[str, float | None]
    n_train: int = 0
    n_test: int = 0
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    data: str = ""
    n_without_mask: int = 0
    n_skipped: int = 0

    @property
    def key(self) -> RunKey:
        """Identity of a run."""
        return self.dataset, self.category, self.system, self.seed

    def is_of(self, data: str, n_train: int, n_test: int) -> bool:
        """Whether it was made of these files; without a digest, whether the numbers of images agree."""
        if self.data:
            return self.data == data
        return (self.n_train, self.n_test) == (n_train, n_test)


@with_config(ConfigDict(strict=True))
@dataclass(frozen=True)
class _Header:
    """The first line."""

    format: Literal[1]
    settings: dict[str, Any]


RUN, HEADER = TypeAdapter(Run), TypeAdapter(_Header)


class Results:
    """The results in a folder, open for appending; a context manager that holds the folder's lock.

    Raises ParameterError if another process works there, or if the runs there were made under other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.path = folder / RUNS_FILE
        self.runs: dict[RunKey, Run] = {}
        self._settings = json.loads(json.dumps(settings))  # as they will be read again
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # if opening fails, the lock is free again
            try:
                stack.enter_context(self._lock.acquire(timeout=0))
            except Timeout as error:
                raise ParameterError(
                    f"{self.path.parent}: another benchmark is writing there; wait for it, or name another folder"
                ) from error
            self._open(stack)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def append(self, run: Run) -> None:
        """Write a run to the disk."""
        self._write(asdict(run))
        self.runs[run.key] = run

    def _open(self, stack: ExitStack) -> None:
        settings, runs, whole = _parse(self.path) if self.path.exists() else (None, [], 0)
        if settings is not None and settings != self._settings:
            changed = [name for name in self._settings if settings.get(name) != self._settings[name]]
            raise ParameterError(
                f"{self.path}: its runs have other settings ({', '.join(changed)}: "
                f"{', '.join(str(settings.get(name)) for name in changed)}); name another folder with --output"
            )
        self.runs = {run.key: run for run in runs}
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        stack.callback(os.close, self._descriptor)
        if os.fstat(self._descriptor).st_size != whole:
            os.ftruncate(self._descriptor, whole)  # what a kill left of a line
        if settings is None:
            self._write(asdict(_Header(1, self._settings)))

    def _write(self, line: Mapping[str, object]) -> None:
        content = (json.dumps(line, allow_nan=False) + "\n").encode()
        while content:
            content = content[os.write(self._descriptor, content) :]
        os.fsync(self._descriptor)


def read_runs(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """Settings and runs of a results file, or of the folder it lies in. Raises ParameterError for anything else."""
    file = path / RUNS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ParameterError(f"{file}: no such results; `flawmap benchmark paper` makes them")
    settings, runs, _ = _parse(file)
    if settings is None:
        raise ParameterError(f"{file}: holds no results; `flawmap benchmark paper` makes them")
    return settings, runs


def _parse(path: Path) -> tuple[dict[str, Any] | None, list[Run], int]:
    """Settings, runs, and the number of bytes in complete lines.

    Of repeated runs the last one counts, and of a class the runs on the files of its last run.
    """
    with open_file(path) as file:
        *lines, torn = file.read().split(b"\n")
    if not lines and torn.strip(b"\0") and not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
        raise ParameterError(f"{path}: is no results file and stays unchanged; name another folder")
    settings: dict[str, Any] | None = None
    runs: dict[RunKey, Run] = {}
    last: dict[tuple[str, str], Run] = {}
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                settings = HEADER.validate_json(line).settings
                continue
            run = RUN.validate_json(line)
        except (ValueError, RecursionError) as error:
            remedy = "delete it to repeat that run" if number > 1 else "name another folder"
            raise ParameterError(f"{path}: line {number} is damaged ({_reason(error)}); {remedy}") from error
        runs[run.key] = run
        last[run.dataset, run.category] = run
    latest = [(run, last[run.dataset, run.category]) for run in runs.values()]
    current = [run for run, other in latest if run.is_of(other.data, other.n_train, other.n_test)]
    return settings, current, sum(len(line) + 1 for line in lines)


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
