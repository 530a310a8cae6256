"""Damaged files for everything that reads files: each must be read or refused by an error of flawmap's own.

Each case runs in another process, within 5 seconds and 2 GB, and may write nothing to standard error. A crash, a hang
or another exception is a fault; its file is kept beside the results. Case i of a seed is always the same, and a run
goes on where an earlier one with the same folder stopped. Prints one JSON object; exit code 1 if there are faults.

    python benchmarks/fuzz.py images|models|exports FOLDER [--count 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

SECONDS = 5.0
MEGABYTES = 2048
HARD_LIMIT = 8 * 2**30
"""Address space of the process that reads: what takes more must not harm the machine."""
START_SECONDS = 120.0


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes:
        seeds: makes whole files, by their names.
        damage: a damaged copy of a file, from its name, content and a random generator.
        check: reads a file and says in a word what became of it; any exception is a fault.
    """

    seeds: Callable[[], dict[str, bytes]]
    damage: Callable[[str, bytes, Generator], bytes]
    check: Callable[[Path], str]


def _images() -> Target:
    from damaged_images import damage_image, image_seeds, read_damaged

    return Target(image_seeds, damage_image, read_damaged)


def _models() -> Target:
    from damaged_models import check_model, damage_model, model_seeds

    return Target(model_seeds, damage_model, check_model)


def _exports() -> Target:
    from damaged_models import check_export, damage_bytes, export_seeds

    return Target(export_seeds, damage_bytes, check_export)


TARGETS: dict[str, Callable[[], Target]] = {"images": _images, "models": _models, "exports": _exports}
"""What is attacked; a function, so that only its own libraries are imported."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case; `fault` says what is wrong with that, or is empty."""

    case: int
    name: str
    result: str
    seconds: float
    peak_mb: float
    fault: str


def attack(target: str, folder: Path, *, count: int, seed: int = 0) -> list[Outcome]:
    """The outcomes of the cases 0 to `count` of a target, those that `folder` holds from an earlier run included."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{target}-{seed}.jsonl"
    outcomes = _earlier(log)
    done = {outcome.case for outcome in outcomes}
    kind = TARGETS[target]()
    seeds = kind.seeds()
    names = sorted(seeds)
    with log.open("a", encoding="utf-8") as lines, _reader(target) as read:
        for case in range(count):
            if case in done:
                continue
            rng = np.random.default_rng([seed, case])
            name = names[case % len(names)]
            content = kind.damage(name, seeds[name], rng)
            outcome = Outcome(case, name, *read(name, content))
            if outcome.fault:
                (folder / f"{target}-{seed}-{case}-{name}").write_bytes(content)
            lines.write(json.dumps(asdict(outcome)) + "\n")
            lines.flush()
            outcomes.append(outcome)
    return outcomes


def _earlier(log: Path) -> list[Outcome]:
    """Outcomes of an earlier run; a line that was cut short is run anew."""
    found = []
    if log.exists():
        whole = [line for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        log.write_text("".join(whole), encoding="utf-8")
        found = [Outcome(**json.loads(line)) for line in whole]
    return found


@contextmanager
def _reader(target: str) -> Iterator[Callable[[str, bytes], tuple[str, float, float, str]]]:
    """A function that reads a file in another process: (result, seconds, peak in MB, fault)."""
    with tempfile.TemporaryDirectory() as folder:
        worker: list[Any] = []

        def read(name: str, content: bytes) -> tuple[str, float, float, str]:
            if not worker:
                worker.extend(_start(target, Path(folder)))
            process, pipe = worker
            pipe.send((name, content))
            started = time.perf_counter()
            answer = None
            if pipe.poll(SECONDS + 1):
                try:
                    answer = pipe.recv()
                except EOFError:
                    process.join(START_SECONDS)
                    answer = ("", 0.0, 0.0, f"crashed with exit code {process.exitcode}")
            if answer is None or answer[3].startswith("crashed"):
                process.kill()
                process.join()
                worker.clear()
            return answer or ("", time.perf_counter() - started, 0.0, f"took more than {SECONDS:g} seconds")

        try:
            yield read
        finally:
            if worker:
                worker[0].kill()
                worker[0].join()


def _start(target: str, folder: Path) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(target, there, folder), daemon=True)
    process.start()
    there.close()
    if not here.poll(START_SECONDS) or here.recv() != "ready":
        raise RuntimeError("the process that reads did not start")
    return process, here


def _serve(target: str, pipe: Connection, folder: Path) -> None:
    """Read files until the other side is gone."""
    kind = TARGETS[target]()
    check = kind.check
    for name, content in kind.seeds().items():  # what they import and keep does not count
        folder.joinpath(name).write_bytes(content)
        check(folder / name)
    resource.setrlimit(resource.RLIMIT_AS, (HARD_LIMIT, HARD_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    errors = folder / "stderr"
    os.dup2(os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND), 2)
    pipe.send("ready")
    while True:
        try:
            name, content = pipe.recv()
        except EOFError:
            return
        path = folder / name
        path.write_bytes(content)
        os.truncate(errors, 0)
        pipe.send(_judge(check, path, errors))


def _judge(check: Callable[[Path], str], path: Path, errors: Path) -> tuple[str, float, float, str]:
    _forget_peak()
    started, result, fault = time.perf_counter(), "", ""
    try:
        result = check(path)
    except BaseException as error:
        fault = f"{type(error).__name__}: {str(error)[:300]}"
    seconds, peak = time.perf_counter() - started, _peak_mb()
    sys.stderr.flush()
    if not fault and seconds > SECONDS:
        fault = f"took {seconds:.1f} seconds"
    if not fault and peak > MEGABYTES:
        fault = f"took {peak:.0f} MB"
    if not fault and (written := errors.read_text(encoding="utf-8", errors="replace")):
        fault = f"wrote to standard error: {written[:300]}"
    return result, round(seconds, 3), round(peak), fault


def _forget_peak() -> None:
    """Let the system count the process's highest memory anew."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")


def _peak_mb() -> float:
    """Highest resident memory since then, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    [line] = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> int:
    """Attack one target and print the counts and the faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("folder", type=Path, help="results, and the files with faults")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = attack(arguments.target, arguments.folder, count=arguments.count, seed=arguments.seed)
    faults = [asdict(outcome) for outcome in outcomes if outcome.fault]
    summary = {
        "target": arguments.target,
        "seed": arguments.seed,
        "cases": len(outcomes),
        "results": Counter(outcome.result or "fault" for outcome in outcomes),
        "longest_seconds": max((outcome.seconds for outcome in outcomes), default=0),
        "highest_peak_mb": max((outcome.peak_mb for outcome in outcomes), default=0),
        "faults": faults,
    }
    print(json.dumps(summary, indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
