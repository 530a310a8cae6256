from __future__ import annotations

import csv
import re
from dataclasses import replace

import pytest

from flawmap.benchmark.paper.compare import changed_classes, compare_runs, comparison_table
from flawmap.benchmark.paper.plan import SPADE_NEIGHBORS
from flawmap.benchmark.paper.published import OBJECTS, PAPER_TABLES, TEXTURES
from flawmap.benchmark.paper.report import to_html, to_latex, to_markdown, write_table
from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.run import Outcome
from flawmap.benchmark.paper.systems import Settings, System, systems
from flawmap.benchmark.paper.tables import BY_CLASS, Table, class_table, paper_notes, paper_table, run_notes, summarise
from flawmap.datasets import LAYOUTS
from flawmap.errors import ParameterError


def runs_of(categories, values, system="Rd100", dataset="mvtec_ad"):
    return [
        Run(dataset, category, system, seed, {"pixel_auroc": value, "pro_score": value / 2})
        for category in categories
        for seed, value in enumerate(values)
    ]


def test_a_mean_needs_every_class():
    runs = runs_of(TEXTURES, [0.9, 0.8])
    found = summarise(runs, "Rd100", TEXTURES, "pixel_auroc")
    assert (found.mean, found.n_seeds) == (pytest.approx(0.85), 2)
    assert found.std == pytest.approx(0.0707, abs=1e-4)
    assert summarise(runs, "Rd100", TEXTURES + OBJECTS, "pixel_auroc") is None
    assert summarise(runs[:-1], "Rd100", TEXTURES, "pixel_auroc").n_seeds == 1
    assert summarise(runs[:-1], "Rd100", TEXTURES, "pixel_auroc").std is None


def test_ours_stand_beside_the_papers_with_the_difference():
    runs = runs_of(TEXTURES, [0.958, 0.96]) + runs_of(["screw"], [0.97])
    rows = {row[:2]: row[2:] for row in paper_table(PAPER_TABLES["II"], runs, Settings()).rows}
    assert rows["Rd100", "textures"] == ("95.7", "95.9 ± 0.1", "+0.2", "91.3", "47.9 ± 0.1", "-43.4")
    assert rows["Rd100", "all"] == ("96.7", "", "", "90.5", "", "")
    assert rows["all channels", "all"] == ("97.1", "", "", "90.8", "", "")
    rows = {row[:2]: row[2:] for row in paper_table(PAPER_TABLES["III"], runs, Settings()).rows}
    assert rows["PaDiM-R18-Rd100", "screw"] == ("97.4", "97.0 (n = 1)", "-0.4", "91.3", "48.5 (n = 1)", "-42.8")
    assert rows["SPADE", "screw"] == ("98.9", "", "", "96.0", "", "")
    rows = paper_table(PAPER_TABLES["III"], runs, Settings(backbone="efficientnet_lite0")).rows
    assert ("PaDiM-efficientnet_lite0-Rd100", "screw", "", "97.0 (n = 1)", "", "", "48.5 (n = 1)", "") in rows


def test_the_mean_over_scenes_is_over_those_with_test_clips():
    scenes = [name for name in LAYOUTS["stc"].classes if name != "13"]
    assert len(scenes) == 12
    [*_, row, _] = paper_table(PAPER_TABLES["IV"], runs_of(scenes, [0.9], dataset="stc"), Settings()).rows
    assert row == ("PaDiM-R18-Rd100", "all", "91.2", "90.0", "-1.2")
    [*_, row, _] = paper_table(PAPER_TABLES["IV"], runs_of(scenes[1:], [0.9], dataset="stc"), Settings()).rows
    assert row == ("PaDiM-R18-Rd100", "all", "91.2", "", "")


def test_speed_and_memory_keep_their_units():
    runs = [Run("speed", "", "PaDiM-R18-Rd100", 0, {"seconds": 0.0175, "gigabytes": 0.031})]
    seven, eight = (paper_table(PAPER_TABLES[name], runs, Settings()).rows for name in ("VII", "VIII"))
    assert ("PaDiM-R18-Rd100", "all", "0.23", "0.018", "-0.213") in seven
    assert ("PaDiM-R18-Rd100", "MVTec AD", "0.17", "0.031", "-0.139") in eight
    assert ("SPADE", "STC", "37.00", "", "") in eight


def test_systems_of_another_backbone_say_what_they_pool():
    label = PAPER_TABLES["V"].label
    assert label("SPADE", Settings()) == "SPADE"
    assert label("SPADE here", Settings()) == "SPADE-R18"
    assert label("SPADE here", Settings(weights="r18.safetensors")) == "SPADE-R18 (layer3 pooled)"
    assert label("MahalanobisAD here", Settings(weights="r18.safetensors")) == "MahalanobisAD-R18 (PaDiM's layers)"


def test_the_papers_numbers_are_those_of_the_paper(shared):
    with (shared / "paper" / "table_III_per_class.csv").open() as file:
        for row in csv.DictReader(file):
            for system, column in (("PaDiM-R18-Rd100", "r18"), ("PaDiM-WR50-Rd550", "wr50"), ("SPADE", "spade")):
                for measure, suffix in (("pixel_auroc", "auroc"), ("pro_score", "pro")):
                    found = PAPER_TABLES["III"].figure(system, row["class"], measure)
                    assert found == float(row[f"{column}_{suffix}"])


def test_means_of_table_three_agree_with_table_two_to_its_rounding():
    of_classes = PAPER_TABLES["III"].figure("PaDiM-R18-Rd100", "textures", "pixel_auroc")
    assert of_classes == pytest.approx(PAPER_TABLES["II"].figure("Rd100", "textures", "pixel_auroc"), abs=0.2)
    assert PAPER_TABLES["III"].figure("Patch SVDD", "all", "pro_score") is None


def test_every_row_is_a_system_or_one_of_the_papers():
    known = systems(Settings(backbone="resnet18", pretrained=False))
    assert all(isinstance(system, System) and system.name == name for name, system in known.items())
    for table in PAPER_TABLES.values():
        for row in table.rows:
            has_paper = any(
                table.figure(table.label(row, Settings()), over, measure) is not None
                for over in ("all", "screw", "MVTec AD", "textures")
                for measure in table.measures
            )
            assert has_paper or row in known


def test_class_by_class():
    table = class_table("mvtec_ad", runs_of(["screw", "tile"], [0.9, 0.8]))
    assert table.rows[0] == ("screw", "Rd100", "2", "", "85.0 ± 7.1", "42.5 ± 3.5", "", "")
    assert table.rows[-1] == ("mean of 2", "Rd100", "2", "", "85.0 ± 7.1", "42.5 ± 3.5", "", "")


def test_what_is_found_at_5_per_cent_stands_beside_the_auroc():
    def run(category, **figures):
        return Run(
            "mvtec_ad", category, "Rd100", 0, {"image_auroc": 0.9, "pixel_auroc": 0.9, "pro_score": 0.9, **figures}
        )

    new = [run("screw", found_at_5=0.5, flagged_at_5=0.04), run("tile", found_at_5=0.7, flagged_at_5=0.06)]
    table = class_table("mvtec_ad", new)
    assert table.header[-2:] == ("found at 5 %", "flagged at 5 %")
    assert [row[-2:] for row in table.rows] == [("50.0", "4.0"), ("70.0", "6.0"), ("60.0", "5.0")]
    assert run_notes(new, BY_CLASS) == ()
    old, few = run("screw"), run("tile", found_at_5=None, flagged_at_5=None)
    assert [row[-2:] for row in class_table("mvtec_ad", [old, few]).rows] == [("", "")] * 3
    assert run_notes([old, few], BY_CLASS) == (
        "Rd100 (screw): nothing at 5 % false alarms, an earlier version made the run.",
        "Rd100 (tile): nothing at 5 % false alarms, no held-out scores or fewer than 19.",
    )
    [*_, found] = compare_runs([old, new[1]], [few, run("tile", found_at_5=0.8, flagged_at_5=0.06)])[:-1]
    assert (found.measure, found.n_pairs, found.mean) == ("found_at_5", 1, pytest.approx(0.1))


TABLE = Table("A & B_1", ("system", "over", "x | y"), (("a_b", "50 %", "1 ± 2"), ("<i>", "", "-")), ("missing: c_d",))


def test_markdown_rows_have_as_many_cells_as_the_header():
    lines = [line for line in to_markdown([TABLE]).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert "missing: c_d" in to_markdown([TABLE])


def test_latex_and_html_are_escaped():
    latex = to_latex([TABLE])
    assert r"A \& B\_1" in latex
    assert r"50 \% & 1 $\pm$ 2 \\" in latex
    assert latex.count(r"\begin{tabular}{llr}") == latex.count(r"\end{tabular}") == 1
    page = to_html([TABLE], {"curves": "plots/a.png"})
    assert "&lt;i&gt;" in page
    assert "<i>" not in page
    assert "src='plots/a.png'" in page


def test_differences_are_paired():
    first = runs_of(["screw"], [0.9, 0.8, 0.7])
    second = runs_of(["screw"], [0.91, 0.82])
    [pixel, pro] = compare_runs(first, second)
    assert (pixel.measure, pixel.n_pairs, pixel.n_higher, pixel.unpaired) == ("pixel_auroc", 2, 2, 1)
    assert (pixel.first, pixel.second, pixel.mean) == pytest.approx((0.85, 0.865, 0.015))
    assert pixel.std == pytest.approx(0.00707, abs=1e-5)
    assert (pixel.lowest, pixel.highest) == pytest.approx((0.01, 0.02))
    assert pro.mean == pytest.approx(0.0075)
    rows = comparison_table([pixel], "A", "B").rows
    assert rows == (
        ("Rd100 (mvtec_ad)", "pixel AUROC", "85.00", "86.50", "+1.50 ± 0.71", "+1.00 to +2.00", "2 of 2", "1"),
    )
    assert compare_runs(first, runs_of(["tile"], [0.9])) == []


def test_runs_of_other_files_are_not_paired():
    first, second = ([replace(run, data=data) for run in runs_of(["screw"], [0.9])] for data in ("a", "b"))
    both = runs_of(["tile"], [0.8])
    assert compare_runs(first, second) == []
    assert changed_classes([*first, *both], [*second, *both]) == ["screw (mvtec_ad)"]
    [pixel, _] = compare_runs([*first, *both], [*second, *both])
    assert (pixel.n_pairs, pixel.other_data) == (1, 1)


def test_every_blank_row_has_a_reason():
    runs = [*runs_of(["screw"], [0.9]), Run("mvtec_ad", "screw", "all", 0, {"image_auroc": 0.5}, n_without_mask=2)]
    outcome = Outcome(runs, ("screw", "tile", "wood"), ("screw", "wood"), {"mvtec_ad wood": "unreadable"})
    outcome.left_out = {"PCA100": "not asked for"}
    notes = paper_notes(PAPER_TABLES["II"], outcome)
    assert "carpet, grid, leather, bottle" in notes[0]
    assert notes[1] == "Not asked for, so that every mean over them is blank: tile."
    assert "Rd100 (wood): unreadable." in notes
    assert "PCA100 (screw): not asked for." in notes
    assert "Rd200 (screw): not run." in notes
    assert "all (screw): no pixel figures, no anomalous image has a mask." in notes
    assert notes[-1].endswith("leave out: 2 of screw.")
    whole = [Run("mvtec_ad", "screw", "MahalanobisAD", 0, {"image_auroc": 0.5, "pixel_auroc": None})]
    assert run_notes(whole, ("pixel_auroc",)) == ("MahalanobisAD: does not localise.",)


def test_uneven_numbers_of_seeds_are_shown():
    runs = runs_of(TEXTURES, [0.9, 0.8, 0.7]) + runs_of(TEXTURES, [0.9, 0.8], system="Rd200")
    rows = {row[:2]: row[3] for row in paper_table(PAPER_TABLES["II"], runs, Settings()).rows}
    assert rows["Rd100", "textures"] == "80.0 ± 10.0 (n = 3)"
    assert rows["Rd200", "textures"] == "85.0 ± 7.1 (n = 2)"


def test_odd_letters_and_long_tables_go_through_latex_and_html():
    long = Table("a^b~c\\d", ("x", "y", "z"), tuple((f"row {i}", "", "") for i in range(95)), ("end",))
    latex = to_latex([long])
    assert r"a\textasciicircum{}b\textasciitilde{}c\textbackslash{}d" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert latex.count("continued") == 2
    assert latex.count("end\n") == 1
    assert latex.count("row ") == 95
    assert "src='plots/a%20%23%3F%27.png'" in to_html([], {"t": "plots/a #?'.png"})


def test_a_table_is_written_in_the_format_of_the_files_name(tmp_path):
    for suffix, start in ((".md", "# Results"), (".tex", r"\begin{table}"), (".html", "<!doctype html>")):
        write_table(tmp_path / f"t{suffix}", TABLE)
        assert (tmp_path / f"t{suffix}").read_text().startswith(start)
    with pytest.raises(ParameterError, match=r"\.md, \.tex, \.html"):
        write_table(tmp_path / "t.csv", TABLE)


def test_spade_compares_with_one_frame_on_the_campus():
    known = systems(Settings(backbone="resnet18", pretrained=False), n_neighbors=SPADE_NEIGHBORS["stc"])
    for name in ("SPADE", "SPADE here"):
        assert known[name].make(0, {"resize": 256, "crop": None})[0].n_neighbors == 1
