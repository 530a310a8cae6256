"""Kills commands by SIGKILL and looks at what they leave: what was there before, or what was to come, and whole.

Each command is killed at random moments, and right after every rename and exchange of names. Then it runs again to its
end; afterwards nothing hidden may be left behind. Export and predict are killed once more on a system without exchange.

    python benchmarks/kill.py [--seed 0] [--moments 20] [--commands fit,threshold,export,predict,benchmark]

Prints one JSON object; exit code 1 if a bar is missed. The images are small and the weights random. The processes are
forked from this one, which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import flawmap.benchmark.paper.run
import flawmap.export
from flawmap import folders
from flawmap.cli.app import app
from flawmap.folders import recover_folder
from flawmap.runtime.export_files import read_export

FIT = ("--backbone", "resnet10t", "--random-weights", "--resize", "64", "--n-features", "8", "--align", "none", "-q")
PAPER = (
    "--tables",
    "I",
    "--systems",
    "layer1",
    "--draws",
    "1",
    "--backbone",
    "resnet10t",
    "--random-weights",
    "--no-plots",
    "-q",
)


@dataclass(frozen=True)
class Case:
    """A command that replaces what the same command has written with other arguments.

    Args:
        old: arguments of the first run.
        new: arguments of the run that is killed.
        target: what they write, relative to the case's folder.
        read: what stands at the target, checked to be whole; equal for equal content.
        exchanges: whether a folder is replaced, for which there are two ways.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    target: str
    read: Callable[[Path], object]
    exchanges: bool = False


def read_file(path: Path) -> object:
    """A file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_export_folder(path: Path) -> object:
    """The threshold of an export whose files belong together."""
    recover_folder(path)
    export = read_export(path)
    assert export.metadata.decision is not None
    return export.metadata.decision.threshold


def read_results(path: Path) -> object:
    """The scores of results whose tables, overlays, masks and maps are of one run."""
    recover_folder(path)
    lines = [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]
    runs = {line["run"] for line in lines}
    runs |= {row["run"] for row in csv.DictReader((path / "predictions.csv").read_text().splitlines())}
    for line in lines:
        for column in ("overlay", "pred_mask"):
            with Image.open(path / line[column]) as picture:
                picture.load()
                runs.add(picture.text["run"])
        if float(np.load(path / line["anomaly_map"]).max()) != np.float32(line["pred_score"]):
            raise ValueError(f"{line['anomaly_map']} is of another run")
    if len(runs) != 1:
        raise ValueError(f"the results are of {len(runs)} runs")
    return [line["pred_score"] for line in lines]


def read_tables(path: Path) -> object:
    """The table of a benchmark; what it is made from is checked line by line."""
    *whole, _last = (path / "runs.jsonl").read_text().split("\n")  # a kill may tear the last line
    for line in whole:
        json.loads(line)
    return read_file(path / "tables.md")


def cases(root: Path) -> dict[str, Case]:
    """All commands, on images and models below `root`."""
    good, first, second = str(root / "good"), str(root / "first.flawmap"), str(root / "second.flawmap")
    data = ("benchmark", "paper", "--data", str(root / "parts"), *PAPER, "-o", "out")
    files = ("--maps", "--masks", "-q")
    return {
        "fit": Case(
            ("fit", good, "-o", "m.flawmap", *FIT), ("fit", good, "-o", "m.flawmap", *FIT, "--seed", "1"),
            "m.flawmap", read_file,
        ),
        "threshold": Case(
            ("fit", good, "-o", "m.flawmap", *FIT), ("threshold", "m.flawmap", "--value", "3", "-q"),
            "m.flawmap", read_file,
        ),
        "export": Case(
            ("export", first, "-o", "part", "-q"), ("export", second, "-o", "part", "-q"),
            "part", read_export_folder, exchanges=True,
        ),
        "predict": Case(
            ("predict", first, good, "-o", "out", *files), ("predict", second, good, "-o", "out", *files),
            "out", read_results, exchanges=True,
        ),
        "benchmark": Case((*data, "--classes", "screw"), (*data, "--classes", "screw,tile"), "out", read_tables),
    }  # fmt: skip


def make_inputs(root: Path, rng: np.random.Generator) -> None:
    """Good images, a data set of two classes in the layout of MVTec AD, and two models."""
    places = [root / "good" / f"{i}.png" for i in range(8)]
    for name in ("screw", "tile"):
        folders_of = {"train/good": 6, "test/good": 2, "test/scratch": 2}
        places += [root / "parts" / name / kind / f"{i:03}.png" for kind, n in folders_of.items() for i in range(n)]
        for i in range(2):
            mask = root / "parts" / name / "ground_truth/scratch" / f"{i:03}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.indices((64, 64)).sum(0) < 40).astype(np.uint8) * 255).save(mask)
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 160, (64, 64, 3), np.uint8)).save(path)
    for name, seed in (("first", "0"), ("second", "1")):
        run(root, ("fit", str(root / "good"), "-o", f"{name}.flawmap", *FIT, "--seed", seed))


def die_after(rename: int, *, exchanges: bool) -> None:
    """Have this process killed right after its n-th rename or exchange, if n is above 0."""
    count = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            result = function(*arguments, **options)
            count += result is not False
            if count == rename:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.rename, os.replace = counted(os.rename), counted(os.replace)
    folders.exchange = counted(folders.exchange) if exchanges else lambda *_: False


def start(folder: Path, arguments: tuple[str, ...], rename: int = 0, *, exchanges: bool = True) -> int:
    """A command in a process of its own, in a folder; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 1)
        die_after(rename, exchanges=exchanges)
        app(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        os._exit(code)


def run(folder: Path, arguments: tuple[str, ...], rename: int = 0, *, exchanges: bool = True) -> bool:
    """Run a command to its end; False if it was killed. Raises RuntimeError if it fails."""
    status = os.waitpid(start(folder, arguments, rename, exchanges=exchanges), 0)[1]
    if os.WIFSIGNALED(status):
        return False
    if status:
        raise RuntimeError(f"flawmap {' '.join(arguments)}: exit code {os.waitstatus_to_exitcode(status)}")
    return True


def run_for(folder: Path, arguments: tuple[str, ...], seconds: float, *, exchanges: bool) -> bool:
    """Run a command and kill it after so many seconds; False if it was killed."""
    child = start(folder, arguments, exchanges=exchanges)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
    return not os.WIFSIGNALED(os.waitpid(child, 0)[1])


def attack(case: Case, root: Path, moments: int, rng: np.random.Generator, *, exchanges: bool) -> dict[str, object]:
    """Kill a command in all places; counts, and what went wrong."""
    before, place = root / "before", root / "place"
    for folder in (before, place):
        shutil.rmtree(folder, ignore_errors=True)
    before.mkdir()
    run(before, case.old)
    shutil.copytree(before, place)
    begin = time.monotonic()
    run(place, case.new)
    seconds = time.monotonic() - begin
    old, new = case.read(before / case.target), case.read(place / case.target)
    found: dict[str, object] = {"seconds": round(seconds, 2), "renames": 0, "moments": 0, "was_old": 0, "was_new": 0}
    wrong: list[str] = [] if old != new else ["old and new are the same"]
    kills = [*[f"moment {share:.3f}" for share in rng.random(moments)], *(f"rename {n}" for n in range(1, 1000))]
    for kill in kills:
        shutil.rmtree(place)
        shutil.copytree(before, place)
        kind, number = kill.split()
        if kind == "moment":
            run_for(place, case.new, float(number) * seconds, exchanges=exchanges)
        elif run(place, case.new, int(number), exchanges=exchanges):
            break
        found[f"{kind}s"] += 1  # type: ignore[operator]
        wrong += [f"{kill}: {problem}" for problem in examine(case, place, old, new, found)]
    return {**found, "wrong": wrong}


def examine(case: Case, place: Path, old: object, new: object, found: dict[str, object]) -> Iterator[str]:
    """What is wrong after a kill, and after the next run."""
    try:
        state = case.read(place / case.target)
    except Exception as error:
        yield f"not whole: {error!r}"
    else:
        if state not in (old, new):
            yield "neither old nor new"
        found["was_new" if state == new else "was_old"] += 1  # type: ignore[operator]
    run(place, case.new)
    if case.read(place / case.target) != new:
        yield "the next run writes something else"
    left = [path.name for path in place.rglob(".*") if path.suffix in (".partial", ".previous")]
    if left:
        yield f"left behind: {', '.join(left)}"


def main() -> int:
    """Attack the commands asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=20, help="random moments per command")
    parser.add_argument("--commands", default="fit,threshold,export,predict,benchmark")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        root = Path(os.path.realpath(temporary))
        make_inputs(root, rng)
        for name in options.commands.split(","):
            case = cases(root)[name]
            results[name] = attack(case, root, options.moments, rng, exchanges=True)
            if case.exchanges:
                results[f"{name}, two renames"] = attack(case, root, options.moments, rng, exchanges=False)
    failed = sorted(name for name, found in results.items() if found["wrong"])
    print(json.dumps({"seed": options.seed, "commands": results, "failed": failed}, indent=2))
    return 1 if failed else 0


if __name__ == "__main__":
    assert flawmap.benchmark.paper.run  # imported before the first fork, as all else
    assert flawmap.export
    sys.exit(main())
