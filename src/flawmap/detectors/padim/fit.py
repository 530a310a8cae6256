"""What `PaDiM.fit` does: one pass over good images for the Gaussians, one for honest scores of the very same images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from flawmap.backbones import Backbone
from flawmap.decision import PIXEL_RATES, Decision
from flawmap.detectors import passes
from flawmap.detectors.detector import check_calibration, check_seed
from flawmap.detectors.grouping import Grouping, HoldOut
from flawmap.detectors.padim.embedding import Hierarchy
from flawmap.detectors.padim.gaussian import (
    MIN_IMAGES,
    Factor,
    Moments,
    Probe,
    Regularization,
    choose_regularization,
    factorise,
)
from flawmap.detectors.padim.kept_embeddings import KeptEmbeddings
from flawmap.detectors.padim.leave_one_out import Calibration, Calibrator, is_large
from flawmap.images import Loaded, Replay, check_cache
from flawmap.prediction import Size
from flawmap.progress import Progress, report_progress

__all__ = ["Fitting", "Learnt", "Method", "check_parameters"]

Method = Literal["leave-one-out", "holdout"]


def check_parameters(calibrate: object, cache_mb: float, false_alarm_rate: float, seed: object) -> None:
    """ParameterError for values that cannot be meant."""
    check_seed(seed)
    check_calibration(calibrate, ("leave-one-out", "holdout", None), false_alarm_rate)
    check_cache(cache_mb)


@dataclass(frozen=True, eq=False)
class Learnt:
    """What was learnt from good images, and what there is to say of them.

    Attributes:
        count: images the Gaussians were learnt from.
        decision: undecided; None if not calibrated, or from too few images.
        outliers: names of images that look unlike the others.
        copies: names of images that equal an earlier one of another group.
        duplicates: names of near-duplicates in different groups, the earlier first.
    """

    factor: Factor
    regularization: Regularization
    count: int
    decision: Decision | None = None
    outliers: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Fitting:
    """How to learn.

    Attributes:
        regularization: None to choose it by the leave-one-out likelihood.
        calibrate: how honest scores are made; None for none.
        groups: see `Grouping`.
    """

    backbone: Backbone
    hierarchy: Hierarchy
    input_size: Size
    batch_size: int
    regularization: Regularization | None
    calibrate: Method | None
    groups: str | Callable[[str], Hashable] | None
    seed: int

    def run(self, replay: Replay, count: int | None, progress: Progress) -> Learnt:
        """Learn from the images of a replay, of which there are `count` if that is known."""
        grouping = Grouping(self.groups)
        held_out = HoldOut(self.seed) if self.calibrate == "holdout" else None
        kept = KeptEmbeddings(replay.reserve)
        self.backbone.expect(self.input_size, count or 0)
        with report_progress(progress, "Learning", count) as advance:
            moments, probe = self._learn(replay, grouping, held_out, kept, advance)
        grouping.check()
        regularization = self.regularization or choose_regularization(moments, probe)
        members = self._members(replay, grouping, held_out)
        refits = held_out is None and any(is_large(len(group), moments.count) for group in members)
        whole = moments if refits else None
        factor = factorise(moments, regularization=regularization, in_place=whole is None)
        learnt = Learnt(factor, regularization, moments.count)
        del moments
        n_again = sum(map(len, members))
        if n_again == 0:
            return learnt
        calibrator = Calibrator(
            self.backbone,
            factor,
            regularization,
            learnt.count,
            replay,
            self.input_size,
            batch_size=self.batch_size,
            moments=whole,
            kept=kept,
        )
        with report_progress(progress, "Calibrating", n_again) as advance:
            score = calibrator.left_out if held_out is None else calibrator.held_out
            calibration = score(members, advance)
        return _conclude(learnt, calibration, replay, grouping) if calibration.scores else learnt

    def _learn(
        self,
        replay: Replay,
        grouping: Grouping,
        held_out: HoldOut | None,
        kept: KeptEmbeddings,
        advance: Callable[[int], None],
    ) -> tuple[Moments, Probe]:
        """Moments of all images that are not held out, and a sample of their embeddings."""
        groups: list[Hashable] = []
        places: list[int] = []
        probe = Probe(self.hierarchy)

        def learnt() -> Iterator[Loaded]:
            for place, image in enumerate(replay.first()):
                group = grouping.add(image.name)
                if held_out is not None and held_out(group):
                    advance(1)
                    continue
                groups.append(group)
                places.append(place)
                yield image

        def keep(columns: list[Tensor]) -> None:
            n_images = columns[0].shape[1]
            kept.add(places[:n_images], columns)
            del places[:n_images]

        moments = passes.learn(
            self.backbone,
            self.hierarchy,
            passes.batches(learnt(), self.batch_size),
            advance,
            probe=probe if self.regularization is None else None,
            groups=groups,
            keep=keep if self.calibrate == "leave-one-out" else None,
        )
        return moments, probe

    def _members(self, replay: Replay, grouping: Grouping, held_out: HoldOut | None) -> list[list[int]]:
        """Places of each group that is to be scored; of those left out, only whole ones that can be read again."""
        if self.calibrate is None:
            return []
        again = set(replay.places)
        if held_out is not None:
            held = [group for key, group in grouping.members.items() if held_out(key)]
            return [[place for place in group if place in again] for group in held]
        if grouping.n_images < MIN_IMAGES:
            return []
        return [group for group in grouping.members.values() if again.issuperset(group)]


def _conclude(learnt: Learnt, calibration: Calibration, replay: Replay, grouping: Grouping) -> Learnt:
    places, scores, groups = calibration.in_order()
    sizes = np.bincount(groups)[groups].astype(np.float32)
    decision = Decision(
        scores, calibration.pixels.exceeded_by(PIXEL_RATES), group_sizes=sizes if sizes.max() > 1 else None
    )
    group_of = {place: number for number, group in enumerate(grouping.members.values()) for place in group}
    names = replay.names
    return Learnt(
        learnt.factor,
        learnt.regularization,
        learnt.count,
        decision,
        outliers=tuple(names[places[i]] for i in decision.outliers()),
        copies=tuple(names[later] for earlier, later in replay.copies if group_of[earlier] != group_of[later]),
        duplicates=tuple((names[earlier], names[later]) for earlier, later in calibration.duplicates()),
    )
