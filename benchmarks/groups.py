"""What groups change: promised and realised false-alarm rates, and defects found, with groups found and without.

Fits the default detector on a data set's good images, with `groups="auto"`, with `groups=None`, and with those that
`--groups` names, and scores its test images. `--copies N` learns instead from N of the good images, each four times:
as it is, and three times shifted by up to two pixels with noise; and then from the N alone. `--shuffle` gives these
copies names in random order. `--clips` makes of every twentieth image a clip of 20 frames that moves by some two pixels
a frame, with noise, and learns from these and every second one of the others. `--again` adds every sixteenth image once
more, saved as JPEG. Prints JSON, a line a fit.

    python benchmarks/groups.py DATASET [--copies 60 [--shuffle] | --clips | --again] [--groups REGEX ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from flawmap import PaDiM
from flawmap.datasets import Dataset, open_dataset
from flawmap.evaluation.metrics import image_auroc

RATES = (0.01, 0.05)


def write_copies(images: Sequence[Path], folder: Path, *, shuffle: bool) -> list[Path]:
    """Each image four times, grey; the files in the order of their names."""
    rng = np.random.default_rng(0)
    copies = []
    for path in images:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L")).astype(float)
        copies.append((path.stem, 0, pixels))
        for number in (1, 2, 3):
            shifted = np.roll(pixels, tuple(rng.integers(-2, 3, 2)), (0, 1))
            copies.append((path.stem, number, shifted + rng.normal(0, 3, pixels.shape)))
    order = rng.permutation(len(copies)) if shuffle else range(len(copies))
    written = []
    for place, index in enumerate(order):
        stem, number, pixels = copies[index]
        written.append(folder / f"{place:04}_{stem}_{number}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(written[-1])
    return written


def write_clips(images: Sequence[Path], folder: Path) -> list[Path]:
    """A clip of every twentieth image, and every second one of the others, grey; in the order of their names."""
    rng = np.random.default_rng(0)
    written = []
    for number, path in enumerate(images):
        n_frames = 20 if number % 20 == 0 else number % 2
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L")).astype(float)
        place = np.zeros(2)
        for frame in range(n_frames):
            place += rng.normal(0, 2, 2)
            moved = pixels
            if n_frames > 1:
                moved = np.roll(pixels, place.round().astype(int), (0, 1)) + rng.normal(0, 3, pixels.shape)
            written.append(folder / f"{number:04}_{frame:02}.png")
            Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(written[-1])
    return written


def write_again(images: Sequence[Path], folder: Path) -> list[Path]:
    """All images, and every sixteenth again as JPEG."""
    again = []
    for path in images[::16]:
        again.append(folder / f"{path.stem}.jpg")
        with Image.open(path) as image:
            image.convert("RGB").save(again[-1], quality=85)
    return [*images, *again]


def measure(data: Dataset, groups: str | None) -> dict[str, object]:
    """Figures of one fit."""
    start = time.perf_counter()
    model = PaDiM(groups=groups).fit(data)
    seconds = time.perf_counter() - start
    decision = model.decision_
    anomalous = np.array([sample.is_anomalous for sample in data.test])
    scores = np.array([prediction.pred_score for prediction in model.predict([sample.path for sample in data.test])])
    found = {}
    for rate in RATES:
        at_rate = decision.at_rate(rate)
        flagged = scores > at_rate.threshold
        found[f"{rate:g}"] = {
            "promised": round(at_rate.false_alarm_rate, 4),
            "good flagged": f"{flagged[~anomalous].sum()} of {(~anomalous).sum()}",
            "anomalous found": f"{flagged[anomalous].sum()} of {anomalous.sum()}",
        }
    return {
        "groups": groups,
        "seconds": round(seconds, 1),
        "n_images": model.n_images_,
        "n_groups": decision.n_groups,
        "found": len(model.groups_),
        "largest": max(map(len, model.groups_), default=1),
        "sharing": model.regularization_.sharing,
        "ridge": round(model.regularization_.ridge, 3),
        "image_auroc": round(image_auroc(anomalous.tolist(), scores.tolist()), 4),
        "rates": found,
    }


def main() -> None:
    """Fit with groups and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--copies", type=int, help="learn from copies of so many of the good images")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--clips", action="store_true", help="learn from clips and single images")
    parser.add_argument("--again", action="store_true", help="learn from some images twice")
    parser.add_argument("--groups", action="append", default=[], metavar="REGEX", help="further groups, by a rule")
    options = parser.parse_args()
    data = open_dataset(options.dataset)
    with tempfile.TemporaryDirectory() as folder:
        learnt: Sequence[Path] = data.train
        if options.copies:
            chosen = data.every(max(1, len(data.train) // options.copies)).train[: options.copies]
            learnt = write_copies(chosen, Path(folder), shuffle=options.shuffle)
        elif options.clips or options.again:
            learnt = (write_clips if options.clips else write_again)(data.train, Path(folder))
        for groups in ("auto", None, *options.groups):
            print(json.dumps(measure(replace(data, train=tuple(learnt)), groups)), flush=True)
        if options.copies:
            print(json.dumps(measure(replace(data, train=tuple(chosen)), None)), flush=True)


if __name__ == "__main__":
    main()
