"""Damaged model files and exports are refused or say the very same; benchmarks/fuzz.py tries many more."""

from __future__ import annotations

import sys

import pytest

from damaged_models import CLAIMS
from fuzz import attack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux")


def test_damaged_models_are_refused_or_say_the_same(tmp_path):
    outcomes = attack("models", tmp_path, count=160, seed=1)
    assert [outcome for outcome in outcomes if outcome.fault] == []
    refused = [outcome.result == "refused" for outcome in outcomes if not outcome.name.startswith(CLAIMS)]
    assert sum(refused) > 0.9 * len(refused)


def test_damaged_exports_are_refused_or_say_the_same(tmp_path):
    outcomes = attack("exports", tmp_path, count=60, seed=1)
    assert [outcome for outcome in outcomes if outcome.fault] == []
    assert sum(outcome.result == "refused" for outcome in outcomes) > 48
