from __future__ import annotations

from itertools import combinations

import pytest

from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.scores import RATES
from flawmap.datasets import LAYOUTS

pytest.importorskip("matplotlib")
from flawmap.benchmark.paper import curves

SYSTEMS = [f"system {i} of many" for i in range(19)]
CLASSES = LAYOUTS["mvtec_ad"].classes


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Figures of 19 systems on 15 classes, by file name."""
    drawn = {}

    def keep(figure, path):
        curves.save_png(figure, path)
        drawn[path.name] = figure

    values = {"image_auroc": 0.9, "pixel_auroc": 0.8, "pro_score": None}
    lines = {name: list(rates) for name, rates in RATES.items()}
    runs = [Run("mvtec_ad", name, system, 0, values, curves=lines) for name in CLASSES for system in SYSTEMS]
    figures = {"seconds": 1.0, "gigabytes": 2.0}
    runs += [Run("speed", str(n), system, 0, figures, n) for n in (100, 200) for system in SYSTEMS]
    curves.plot_results(runs, tmp_path_factory.mktemp("plots"), save=keep)
    return drawn


def test_many_systems_and_classes_stay_legible(figures):
    assert len(figures) == len(CLASSES) + 3
    for name, figure in figures.items():
        [legend] = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == sorted(SYSTEMS, key=legend_order(name))
        box = legend.get_window_extent()
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0)
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes), name
        assert figure.get_size_inches()[0] <= 16
        for axes in figure.axes:
            labels = [label.get_window_extent() for label in axes.get_xticklabels()]
            assert not any(one.overlaps(other) for one, other in combinations(labels, 2)), name
    shown = [label.get_text() for axes in figures["mvtec_ad_image_auroc.png"].axes for label in axes.get_xticklabels()]
    assert shown == sorted(CLASSES)


def legend_order(name):
    return None if name == "growth.png" else SYSTEMS.index


def test_the_threshold_of_5_per_cent_is_a_point_on_the_curve(tmp_path):
    drawn = {}
    lines = {name: list(rates) for name, rates in RATES.items()}
    values = [{"image_auroc": 0.9, "found_at_5": found, "flagged_at_5": 0.06} for found in (0.7, 0.9)]
    runs = [Run("mvtec_ad", "screw", "a", seed, one, curves=lines) for seed, one in enumerate(values)]
    runs.append(Run("mvtec_ad", "screw", "b", 0, {"image_auroc": 0.9}, curves=lines))  # of an earlier version
    written = curves.plot_results(runs, tmp_path, save=lambda figure, path: drawn.update({path.name: figure}))
    assert "mvtec_ad: found at 5 % by class" in written
    [point] = drawn["mvtec_ad_screw_curves.png"].axes[0].collections
    assert point.get_offsets().tolist() == [[pytest.approx(0.06), pytest.approx(0.8)]]


def test_no_two_systems_look_alike(figures):
    for axes in figures["mvtec_ad_screw_curves.png"].axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == len(SYSTEMS)
