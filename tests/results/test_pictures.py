from __future__ import annotations

import numpy as np
from PIL import ImageFont

from flawmap.results import pictures
from flawmap.results.pictures import TILE, Tile, contact_sheet


def test_long_captions_stay_below_their_tile(monkeypatch):
    drawn = []
    shortened = pictures._shortened

    def keep(text, font, width):
        drawn.append(shortened(text, font, width))
        return drawn[-1]

    monkeypatch.setattr(pictures, "_shortened", keep)
    image = np.zeros((8, 8, 3), np.uint8)
    tiles = [Tile(image, image, "a-very-long-name-" * 20 + ".png  12.3"), Tile(image, image, "001.png  4.5")]
    contact_sheet("t" * 999, [("scratch", tiles)])
    title, heading, long, short = drawn
    assert (heading, short) == ("scratch", "001.png  4.5")
    assert len(title) < 999
    assert long.startswith("a-very-long-name-")
    assert long.endswith(".png  12.3")
    assert ImageFont.load_default(14).getlength(long) <= 2 * TILE
