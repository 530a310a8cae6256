"""`flawmap demo`: real photos of solar cells, from fit to pictures of defects."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from PIL import Image

from flawmap.cli import options
from flawmap.cli.console import guarded, print_json, say
from flawmap.images import read_image
from flawmap.results.pictures import Tile, contact_sheet, overlay

if TYPE_CHECKING:
    from flawmap.datasets import Sample
    from flawmap.prediction import Prediction

N_TILES = 8


@guarded
def demo(
    output: Annotated[Path, options.option("Folder for the results.", "OUT", "--output", "-o")] = Path("demo-output"),
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit on functional solar cells, score unseen and defective ones, and show the results.

    The photos are electroluminescence images of monocrystalline cells (ELPV data set, CC BY-NC-SA 4.0), which the
    `demo` extra installs. The fit uses 80 % of the functional cells; the others and the surely defective ones are
    scored.
    """
    from flawmap import PaDiM
    from flawmap.datasets import open_dataset
    from flawmap.evaluation.evaluate import score_samples
    from flawmap.evaluation.metrics import image_auroc

    started = time.perf_counter()
    data = open_dataset("elpv:mono")
    output.mkdir(parents=True, exist_ok=True)
    if not quiet:
        say(f"Fitting on {len(data.train)} functional solar cells and no defective ones.")
    model = PaDiM().fit(data, progress=not quiet)
    model.save(output / "solar-cells.flawmap")
    found = list(score_samples(model, data.test, "Scoring", progress=not quiet))
    found.sort(key=lambda pair: -pair[1].pred_score)
    auroc = image_auroc([sample.is_anomalous for sample, _ in found], [p.pred_score for _, p in found])
    sheet = output / "contact-sheet.png"
    _draw(found, model.map_scale or (0.0, 1.0), f"{data.name}: image AUROC {auroc:.3f}").save(sheet)
    seconds = time.perf_counter() - started
    good, defective = ([p for sample, p in found if sample.is_anomalous == kind] for kind in (False, True))
    n_good_flagged, n_defective_flagged = (sum(p.pred_label or 0 for p in part) for part in (good, defective))
    if as_json:
        print_json(
            {
                "image_auroc": auroc,
                "n_train": len(data.train),
                "n_good": len(good),
                "n_good_flagged": n_good_flagged,
                "n_defective": len(defective),
                "n_defective_flagged": n_defective_flagged,
                "seconds": round(seconds, 1),
                "contact_sheet": str(sheet),
                "model": str(output / "solar-cells.flawmap"),
            }
        )
    elif not quiet:
        say(f"Image AUROC {auroc:.4f} on {len(found)} unseen cells, in {seconds:.0f} s.")
        say(
            f"Threshold for {model.false_alarm_rate:g} false alarms, from good images alone: {n_good_flagged} of "
            f"{len(good)} good cells flagged, {n_defective_flagged} of {len(defective)} defective ones found."
        )
        say(f"The most and least conspicuous cells, with heat maps: {sheet}")


def _draw(found: list[tuple[Sample, Prediction]], scale: tuple[float, float], title: str) -> Image.Image:
    """Contact sheet of the most and the least conspicuous images; `found` is sorted, most conspicuous first."""

    def tile(sample: Sample, prediction: Prediction) -> Tile:
        picture = read_image(sample.path)
        caption = f"{sample.path.name}  {sample.type}  score {prediction.pred_score:.1f}"
        return Tile(picture, overlay(picture, prediction, scale), caption)

    worst, best = found[:N_TILES], found[::-1][:N_TILES]
    return contact_sheet(
        title,
        [("Most conspicuous", [tile(*pair) for pair in worst]), ("Least conspicuous", [tile(*pair) for pair in best])],
    )
