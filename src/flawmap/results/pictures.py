"""Pictures for people: an image with its anomaly map laid over it, and a contact sheet of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flawmap.images.photo import FINER, Canvas
from flawmap.images.read import ImageSource, use_photo
from flawmap.prediction import Prediction

MAX_SIDE = 1600
"""Longest side of an overlay; larger images are shown smaller."""
TILE = 200
MARGIN = 12
CAPTION = 22
HEADING = 34
INK = (32, 32, 32)
OUTLINE = (255, 0, 255)
"""Colour of the outline of a region of interest: none of the map's."""
TURBO = np.frombuffer(
    bytes.fromhex(
        "30123b 3f3e9c 4666dd 458cfd 2fb2f4 1ad4d0 22ebaa 52fa7a 8bff4b "
        "b7f735 dbe236 f5c53a fea130 f9751d e84b0c ce2d04 a91601 7a0403"
    ),
    np.uint8,
).reshape(-1, 3)
"""The colours of Turbo (Mikhailov 2019) at equal distances, RGB; those between lie on straight lines, within 3 %."""
LEVELS = np.linspace(0, 1, 256)
COLOURS = np.stack([np.interp(LEVELS, np.linspace(0, 1, len(TURBO)), channel) for channel in TURBO.T], axis=-1)
COLOURS = np.round(COLOURS).astype(np.uint8)
OPACITY = np.round(255 * 0.55 * np.sqrt(LEVELS)).astype(np.uint8)
"""Colour (256, 3) and opacity (256) of a map's values, from the coolest to the hottest."""


def read_picture(source: ImageSource) -> NDArray[np.uint8]:
    """An image (H, W, 3) to lay a map over: at least `MAX_SIDE` pixels long, if it is. Raises ImageError."""
    half = MAX_SIDE // FINER
    photo, _ = use_photo(source, lambda *_, **__: None, canvas=Canvas((half, half), "letterbox"))
    return photo.rgb


def overlay(
    rgb: NDArray[np.uint8], prediction: Prediction, scale: tuple[float, float], *, max_side: int = MAX_SIDE
) -> NDArray[np.uint8]:
    """The image (H, W, 3), made smaller if need be, with its anomaly map laid over it.

    `scale` is the model's fixed (coolest, hottest) map value: below the first the image shows as it is, from the second
    on it is covered in red. The scale is the same for all images of a model, so a good part never glows. A region of
    interest is outlined. ParameterError for a prediction without a map.
    """
    factor = min(1.0, max_side / max(rgb.shape[:2]))
    height, width = max(1, round(rgb.shape[0] * factor)), max(1, round(rgb.shape[1] * factor))
    picture = Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)
    shown = replace(prediction, placement=prediction.placement.on((height, width)))
    low, high = scale
    strength = np.clip((shown.original_map() - low) * np.float32(255 / max(high - low, 1e-12)), 0, 255)
    level = np.round(strength).astype(np.uint8)
    colours, opacity = Image.fromarray(COLOURS[level]), Image.fromarray(OPACITY[level])
    blend = np.array(Image.composite(colours, picture, opacity))
    if shown.placement.roi is not None:
        blend[_outline(shown.placement.to_original(shown.placement.roi.astype(np.float32)) > 0.5)] = OUTLINE
    return blend


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (H, W) of a region that touch a pixel outside it; the border of the picture is no outline."""
    padded = np.pad(inside, 1, mode="edge")
    beside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: NDArray[np.bool_] = inside & ~beside
    return outline


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet: the picture (H, W, 3), its overlay of the same size, and a line below them.

    Example:
        >>> grey = np.full((40, 60, 3), 128, np.uint8)
        >>> contact_sheet("Parts", [("Good", [Tile(grey, grey, "part.png")])]).mode
        'RGB'
    """

    picture: NDArray[np.uint8]
    overlay: NDArray[np.uint8]
    caption: str


def contact_sheet(title: str, sections: Sequence[tuple[str, Sequence[Tile]]], *, columns: int = 4) -> Image.Image:
    """Titled sections of tiles; each tile is an image beside its overlay."""
    font, bold = ImageFont.load_default(14), ImageFont.load_default(18)
    cell = (2 * TILE + MARGIN, TILE + CAPTION + MARGIN)
    parts = [(title, ()), *sections]
    heights = [HEADING + -(-len(tiles) // columns) * cell[1] for _, tiles in parts]
    sheet = Image.new("RGB", (columns * cell[0] + 2 * MARGIN, sum(heights) + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    end = MARGIN
    for (heading, tiles), height in zip(parts, heights, strict=True):
        draw.text((MARGIN, end), _shortened(heading, bold, sheet.width - 2 * MARGIN), INK, font=bold)
        top, end = end + HEADING, end + height
        for i, tile in enumerate(tiles):
            x, y = MARGIN + i % columns * cell[0], top + i // columns * cell[1]
            for j, content in enumerate((tile.picture, tile.overlay)):
                thumbnail = Image.fromarray(content)
                thumbnail.thumbnail((TILE - 2, TILE), Image.Resampling.BICUBIC)
                sheet.paste(thumbnail, (x + j * TILE, y))
            draw.text((x, y + TILE + 3), _shortened(tile.caption, font, 2 * TILE), INK, font=font)
    return sheet


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or its two ends, so that it is no wider than that many pixels."""
    shown, kept = text, len(text)
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return shown
