from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flawmap.benchmark.paper.results import RUNS_FILE, read_runs

PLACES = {
    "in_features": 1,
    "between_scoring_and_writing": 4,
    "in_the_middle_of_a_line": 5,
    "just_after_a_line": 10,
    "between_two_tables": 23,
}
"""Where it is killed, and the lines written until then: the settings, and the runs."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_five_places_and_started_again_it_ends_with_the_same_tables(parts, tmp_path):
    script = Path(__file__).with_name("killed_benchmark.py")
    done = subprocess.run([sys.executable, script, parts, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("undisturbed") == 0, done.stderr
    _, runs = read_runs(tmp_path / "undisturbed")
    assert len(runs) == 22
    assert all(run.figures["pixel_auroc"] is not None for run in runs)
    for place, n_lines in PLACES.items():
        killed = found.pop(place)
        assert killed["signal"] == signal.SIGKILL
        assert killed["again"] == 0, done.stderr
        assert killed["lines"] == n_lines, place
        assert killed["torn"] == (place == "in_the_middle_of_a_line")
        assert set(killed["left"]) <= {".lock", "galleries", "runs.jsonl", "tables.md", "tables.tex"}, place
        for name in ("tables.md", "tables.tex", "tables.html"):
            wanted = (tmp_path / "undisturbed" / name).read_bytes()
            assert (tmp_path / place / name).read_bytes() == wanted, place
        again = {run.key: run.figures for run in read_runs(tmp_path / place / RUNS_FILE)[1]}
        assert again == {run.key: run.figures for run in runs}
    assert not found
