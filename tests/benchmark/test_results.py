from __future__ import annotations

import json
import os

import pytest

from flawmap.benchmark.paper.results import RUNS_FILE, Results, Run, read_runs
from flawmap.errors import ParameterError

SETTINGS = {"backbone": "resnet18", "regularization": (0.1, 0.5)}
RUNS = [
    Run(
        "mvtec_ad", "screw", "Rd100", seed, {"pixel_auroc": 0.97, "pro_score": None}, 320, 160, {"pro": [0.0, 0.5]}, 1.5
    )
    for seed in range(3)
]


@pytest.fixture
def folder(tmp_path):
    with Results(tmp_path, SETTINGS) as results:
        for run in RUNS:
            results.append(run)
    return tmp_path


def test_runs_come_back(folder):
    with Results(folder, SETTINGS) as results:
        assert list(results.runs.values()) == RUNS
    settings, runs = read_runs(folder)
    assert settings["backbone"] == "resnet18"
    assert runs == read_runs(folder / RUNS_FILE)[1] == RUNS


def test_cut_short_at_any_byte_whole_runs_stay_and_the_rest_is_done_again(folder):
    file = folder / RUNS_FILE
    content = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        with Results(folder, SETTINGS) as results:
            assert list(results.runs.values()) == RUNS[: max(0, whole - 1)]
            for run in RUNS[max(0, whole - 1) :]:
                results.append(run)
        assert file.read_bytes() == content


def test_zeros_that_a_power_cut_left_are_cut_off(folder):
    file = folder / RUNS_FILE
    content = file.read_bytes()
    file.write_bytes(content + bytes(100))
    with Results(folder, SETTINGS) as results:
        assert list(results.runs.values()) == RUNS
    assert file.read_bytes() == content


def test_a_line_damaged_in_the_middle_is_named(folder):
    lines = (folder / RUNS_FILE).read_text().splitlines()
    for damaged in ("{", json.dumps({"dataset": "a"}), "[]"):
        (folder / RUNS_FILE).write_text("\n".join([*lines[:2], damaged, *lines[3:]]) + "\n")
        with pytest.raises(ParameterError, match="line 3 is damaged"), Results(folder, SETTINGS):
            pass


def test_other_settings_are_refused(folder):
    with (
        pytest.raises(ParameterError, match=r"other settings \(backbone: resnet18\)"),
        Results(folder, {**SETTINGS, "backbone": "a"}),
    ):
        pass
    with Results(folder, SETTINGS):  # the lock is free again
        pass


def test_two_at_once_are_refused_and_a_dead_ones_lock_is_not(folder):
    with Results(folder, SETTINGS), pytest.raises(ParameterError, match="another benchmark"), Results(folder, SETTINGS):
        pass
    child = os.fork()
    if child == 0:
        Results(folder, SETTINGS).__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    with Results(folder, SETTINGS) as results:
        assert len(results.runs) == 3


def test_what_is_no_results_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no such results"):
        read_runs(tmp_path)
    (tmp_path / RUNS_FILE).write_text("")
    with pytest.raises(ParameterError, match="holds no results"):
        read_runs(tmp_path)
    (tmp_path / RUNS_FILE).write_text('{"format": 9, "settings": {}}\n{}\n')
    with pytest.raises(ParameterError, match="line 1 is damaged"):
        read_runs(tmp_path)


def test_a_line_of_wrong_types_is_named_wherever_it_stands(folder):
    lines = (folder / RUNS_FILE).read_text().splitlines()
    run = json.loads(lines[-1])
    for change in ({"seed": "1"}, {"figures": [1]}, {"figures": {"pro_score": "x"}}, {"n_test": None}, {"system": 3}):
        (folder / RUNS_FILE).write_text("\n".join([*lines[:-1], json.dumps(run | change)]) + "\n")
        with pytest.raises(ParameterError, match=f"line {len(lines)} is damaged"):
            read_runs(folder)


def test_a_foreign_file_is_left_as_it_is(tmp_path):
    for content in (b"my notes", b"my notes\n", b'{"a": 1}'):
        (tmp_path / RUNS_FILE).write_bytes(content)
        with pytest.raises(ParameterError, match=r"runs.jsonl"), Results(tmp_path, SETTINGS):
            pass
        assert (tmp_path / RUNS_FILE).read_bytes() == content


def test_lines_of_earlier_versions_are_read_and_runs_of_other_files_give_way(tmp_path):
    with Results(tmp_path, {}) as results:
        for seed, data in ((0, "old"), (1, "old"), (0, "new")):
            results.append(Run("mvtec_ad", "screw", "Rd100", seed, {}, 3, 4, data=data))
        results.append(Run("mvtec_ad", "tile", "Rd100", 0, {}, 3, 4))
    lines = (tmp_path / RUNS_FILE).read_text().splitlines()
    old = {name: value for name, value in json.loads(lines[-1]).items() if not name.startswith(("data", "n_w", "n_s"))}
    lines[-1] = json.dumps(old | {"dataset": "mvtec_ad"})
    (tmp_path / RUNS_FILE).write_text("\n".join(lines) + "\n")
    kept = [(run.category, run.seed, run.data) for run in read_runs(tmp_path)[1]]
    assert kept == [("screw", 0, "new"), ("tile", 0, "")]
