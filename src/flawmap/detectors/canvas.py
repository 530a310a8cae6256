"""The canvas of a fit whose `resize` is in the proportions of its good photos, such as "long:768"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flawmap.errors import TrainingSetError
from flawmap.images import ImageSource, Preprocessing, stream
from flawmap.images.proportions import ProportionalSize
from flawmap.options import OnBad
from flawmap.prediction import Size

LOOKED_AT = 16
"""Photos whose sizes are looked at: they are read once more, and all others only once."""


def canvas_size(
    rule: str, photos: Sequence[ImageSource], *, step: int, on_bad: OnBad | None = None, workers: int | None = None
) -> Size:
    """The canvas (height, width) in the proportions of the most frequent size among the first 16 good photos.

    Of sizes that are equally frequent the first one counts. With `on_bad`, photos that cannot be read are left out
    without a word, since the fit reports them. Raises ImageError for one without, TrainingSetError if none can be read,
    ParameterError for a canvas that is too large.

    Args:
        rule: such as "long:768" or "short:512".
        photos: the first good photos.
        step: pixels that both sides are to be a multiple of.
        on_bad, workers: as for `fit`.
    """
    quietly = None if on_bad is None else (lambda _: None)
    looked_at = list(photos[:LOOKED_AT])
    loaded = stream(looked_at, Preprocessing((8, 8), reading="reduced"), on_bad=quietly, workers=workers)
    sizes = Counter(image.placement.image_size for image in loaded)
    if not sizes:
        raise TrainingSetError(
            f"resize '{rule}' follows from the good photos, and none of the first {len(looked_at)} can be read; give a "
            f"size in pixels, or other photos"
        )
    [(usual, _)] = sizes.most_common(1)  # the first of equal ones
    return ProportionalSize.parse(rule).of(usual, step=step)
