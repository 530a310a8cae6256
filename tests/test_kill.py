"""Each command that writes, killed right after each rename and exchange; `benchmarks/kill.py` adds random moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "kill.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_after_each_rename_a_command_leaves_old_or_new_and_nothing_more_after_the_next_run():
    commands = "fit,threshold,export,predict"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--moments", "0", "--commands", commands],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    renames = {name: result["renames"] for name, result in found["commands"].items()}
    assert renames["fit"] == renames["threshold"] == 1
    assert renames["export, two renames"] == renames["predict, two renames"] == 3
    assert all(result["was_old"] + result["was_new"] == result["renames"] for result in found["commands"].values())
    assert found["commands"]["export, two renames"]["was_old"] == 1
