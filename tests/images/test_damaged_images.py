"""Damaged files of every format are read or refused, within bounds; benchmarks/fuzz.py runs many more."""

from __future__ import annotations

import json
import sys

import pytest

from damaged_images import damage_image, image_seeds, read_damaged
from fuzz import MEGABYTES, SECONDS, attack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux")


def test_damaged_images_are_read_or_refused_within_bounds(tmp_path):
    outcomes = attack("images", tmp_path, count=400, seed=1)
    assert [outcome for outcome in outcomes if outcome.fault] == []
    assert len(outcomes) == 400
    assert {outcome.result for outcome in outcomes} == {"read", "refused"}
    assert max(outcome.seconds for outcome in outcomes) <= SECONDS
    assert 0 < max(outcome.peak_mb for outcome in outcomes) <= MEGABYTES


def test_an_attack_goes_on_where_an_earlier_one_stopped(tmp_path):
    whole = attack("images", tmp_path / "one", count=12)
    log = tmp_path / "one" / "images-0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:7]) + lines[7][:20])
    again = attack("images", tmp_path / "one", count=12)
    assert [(one.case, one.name, one.result) for one in again] == [(one.case, one.name, one.result) for one in whole]
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 12


@pytest.mark.parametrize("name", image_seeds())
def test_whole_files_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(image_seeds()[name])
    assert read_damaged(path) == "read"


def test_damage_is_drawn_from_its_seed():
    import numpy as np

    content = image_seeds()["rgb.png"]
    one, other, third = (damage_image("rgb.png", content, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == other != third
