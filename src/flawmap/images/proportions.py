"""A size in the proportions of photos: "long:768" makes their long side 768, "short:512" their short side 512."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from flawmap.errors import ParameterError
from flawmap.options import MAX_SIDE
from flawmap.prediction import Size

RULE = re.compile(r"(long|short):([0-9]{1,9})")


@dataclass(frozen=True)
class ProportionalSize:
    """A rule for the size of a canvas.

    Attributes:
        is_long: whether the long side is given; else the short one.
        pixels: that side.

    Example:
        >>> ProportionalSize.parse("long:768").of((2000, 3000), step=32)
        (512, 768)
    """

    is_long: bool
    pixels: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rule of a text. Raises ParameterError."""
        match = RULE.fullmatch(text)
        if match is None or not 1 <= int(match[2]) <= MAX_SIDE:
            raise ParameterError(
                f"resize must be a number of pixels, (height, width), or a rule such as 'long:768' or 'short:512', a "
                f"side of 1 to {MAX_SIDE}; got {text!r}"
            )
        return cls(match[1] == "long", int(match[2]))

    def of(self, photo: Size, *, step: int) -> Size:
        """The canvas (height, width) for photos of a size, each side the nearest multiple of `step`, and one at least.

        Raises ParameterError for a canvas that is too large.
        """
        given = photo[0] if (photo[0] >= photo[1]) == self.is_long else photo[1]
        scale = _nearest(self.pixels, step) / given
        height, width = (_nearest(side * scale, step) for side in photo)
        if max(height, width) > MAX_SIDE:
            raise ParameterError(
                f"resize '{'long' if self.is_long else 'short'}:{self.pixels}' makes {height} x {width} of photos of "
                f"{photo[0]} x {photo[1]} (height x width); a side may have {MAX_SIDE} pixels; give a smaller number"
            )
        return height, width


def _nearest(side: float, step: int) -> int:
    """The nearest multiple of a step, and not 0; half of one rounds up."""
    return max(1, int(side / step + 0.5)) * step
