"""A tiny benchmark that is killed in several places and started again, each time in a process of its own.

    python killed_benchmark.py DATA OUT

Prints one JSON object: for each place, how many runs were written before the kill. The processes are forked from this
one, which has imported everything and computed nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import flawmap.benchmark.paper.curves
from flawmap.benchmark.paper import report, results, shared_features
from flawmap.benchmark.paper import run as paper
from flawmap.benchmark.paper.plan import Plan
from flawmap.benchmark.paper.report import write_report
from flawmap.benchmark.paper.results import Results
from flawmap.benchmark.paper.run import run_plan
from flawmap.benchmark.paper.systems import Settings
from flawmap.benchmark.paper.tables import build_tables

SETTINGS = Settings(backbone="resnet10t", pretrained=False)
TABLES = ["I", "II"]


def benchmark(data, output):
    inputs = {"mvtec_ad": {"resize": 32, "crop": None}}
    plan = Plan(data, "mvtec_ad", TABLES, output, SETTINGS, draws=2, classes=["screw", "tile"], inputs=inputs)
    with Results(output, asdict(SETTINGS)) as kept:
        outcome = run_plan(plan, kept)
        write_report(output, build_tables(TABLES, outcome, SETTINGS), outcome.runs, plots=False)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def after(function, calls, do):
    """The function, whose n-th call is followed by something else."""
    count = 0

    def wrapped(*args, **kwargs):
        nonlocal count
        result = function(*args, **kwargs)
        count += 1
        if count == calls:
            do()
        return result

    return wrapped


def in_features():
    original = shared_features.SharedFeatures._run

    def run(self, first, last):
        for step in original(self, first, last):
            yield step
            die()

    shared_features.SharedFeatures._run = run


def between_scoring_and_writing():
    paper.run_curves = after(paper.run_curves, 4, die)


def in_the_middle_of_a_line():
    count, write = 0, os.write

    def torn(descriptor, content):
        nonlocal count
        count += 1
        if count == 6:
            write(descriptor, content[: len(content) // 2])
            die()
        return write(descriptor, content)

    results.os.write = torn


def just_after_a_line():
    results.Results.append = after(results.Results.append, 9, die)


def between_two_tables():
    report.replace_atomically = (lambda original: after(original, 2, die))(report.replace_atomically)


PLACES = [in_features, between_scoring_and_writing, in_the_middle_of_a_line, just_after_a_line, between_two_tables]


def forked(data, output, prepare=lambda: None):
    """Exit signal of a benchmark in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            benchmark(data, output)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main():
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    found = {"undisturbed": forked(data, output / "undisturbed")}
    for place in PLACES:
        folder = output / place.__name__
        killed = forked(data, folder, place)
        file = folder / results.RUNS_FILE
        found[place.__name__] = {
            "signal": killed,
            "lines": file.read_bytes().count(b"\n") if file.exists() else 0,
            "torn": file.exists() and not file.read_bytes().endswith(b"\n"),
            "left": sorted(path.name for path in folder.iterdir()),
            "again": forked(data, folder),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    assert flawmap.benchmark.paper.curves  # imported before the fork, as all else
    main()
