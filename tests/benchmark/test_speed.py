from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flawmap.backbones import load_backbone
from flawmap.benchmark.peers import Peer, find_peers
from flawmap.benchmark.speed import PlainPaDiM, measure_speed
from flawmap.benchmark.timing import interleaved
from flawmap.cli.app import app
from flawmap.errors import ParameterError


def test_calls_take_turns_and_the_first_of_a_block_is_not_counted():
    calls = []
    latency = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert "".join(calls) == "ab" + "aaaaaabbbbbb" * 2
    assert set(latency) == {"a", "b"}
    assert 0 <= latency["a"].p50 <= latency["a"].p95


def test_the_usual_script_gives_maps_and_scores():
    backbone = load_backbone("resnet10t", pretrained=False, runtime="torch")
    (_, grid), *_ = backbone.shapes((64, 64))
    plain = PlainPaDiM(backbone, grid, torch.arange(0, 400, 20), (64, 64))
    maps, scores = plain(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    assert maps.shape == (2, 64, 64)
    assert torch.equal(maps.amax(dim=(1, 2)), scores)


def test_the_report_holds_every_runtime():
    cases = {"resnet18-100": ("resnet10t", 100)}
    report = measure_speed(
        list(cases), n_images=3, rounds=1, cases=cases, side=64, file_side=128, large=(600, 800)
    ).to_json()
    report = json.loads(json.dumps(report))
    (case,) = report["cases"]
    assert case["fits"].keys() == {"float32", "bfloat16"}
    assert all(fit["seconds"] > 0 and fit["peak_mb"] > 100 for fit in case["fits"].values())
    assert case["alone"].keys() == {"decoding", "backbone float32", "backbone bfloat16"}
    assert case["file_mb_float16"] < 0.6 * case["file_mb"]
    assert set(case["latency"]) == {"1", "8", "1 from file", "1 from a large JPEG"}
    large = case["latency"]["1 from a large JPEG"]
    assert large.keys() >= {"scaled decoding alone", "reading all its pixels", "graph, OpenVINO bfloat16", "predict"}
    one, eight = case["latency"]["1"], case["latency"]["8"]
    assert (
        set(one)
        == set(eight)
        == {
            "usual script",
            "predict, torch float32",
            "predict, OpenVINO float32",
            "backbone alone, torch float32",
            "backbone alone, OpenVINO float32",
            "backbone alone, OpenVINO bfloat16",
            "graph, OpenVINO float32",
            "graph, OpenVINO bfloat16",
            "graph, ONNX Runtime float32",
        }
    )
    assert all(latency["p50"] > 0 for latency in eight.values())
    script, graph = one["usual script"]["p50"], one["graph, OpenVINO bfloat16"]["p50"]
    assert case["ratios"]["usual script over graph, bfloat16"] == pytest.approx(script / graph, abs=0.01)
    fit = case["fits"]["float32"]["seconds"]
    least = case["alone"]["decoding"] + case["alone"]["backbone float32"]
    assert case["ratios"]["fit over decoding and backbone alone, float32"] == pytest.approx(fit / least, abs=0.01)
    assert report["paper"]["seconds"]["SPADE"] == 7.10


@pytest.mark.parametrize(("option", "value"), [("--cases", "vgg"), ("--images", "2"), ("--rounds", "0")])
def test_impossible_options_are_refused(option, value):
    done = CliRunner().invoke(app, ["benchmark", "speed", option, value])
    assert done.exit_code == 1
    assert "Traceback" not in done.output


def test_a_folder_without_environments_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["benchmark", "speed", "--peers", str(tmp_path)])
    assert done.exit_code == 1
    assert "make bench-peers" in " ".join(done.output.split())


def stand_in(folder, code):
    """A package's environment whose Python is a script."""
    python = folder / "anomalib" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\n{code}")
    python.chmod(0o755)
    return find_peers(folder)["anomalib"]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script that a shell starts")
def test_another_package_answers_or_its_error_is_told(tmp_path):
    echo = "import json, sys\nfor line in sys.stdin: print(json.dumps(json.loads(line)[1:3]), flush=True)"
    with Peer("anomalib", stand_in(tmp_path / "a", echo)) as peer:
        assert peer.ask("fit", 100, 224) == [100, 224]
    failing = 'import sys\nfor line in sys.stdin: print(\'{"error": "RuntimeError: no"}\', flush=True)'
    with (
        Peer("anomalib", stand_in(tmp_path / "b", failing)) as peer,
        pytest.raises(ParameterError, match="anomalib cannot do this: RuntimeError: no"),
    ):
        peer.ask("call", "torch")
    with (
        Peer("anomalib", stand_in(tmp_path / "c", "")) as peer,
        pytest.raises(ParameterError, match="anomalib has died"),
    ):
        peer.ask("images", 1, 8)


def test_the_worker_says_what_is_missing():
    with Peer("anomavision", Path(sys.executable)) as peer, pytest.raises(ParameterError, match="No module named"):
        peer.ask("fit", 100, 64, "images")
