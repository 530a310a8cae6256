"""Reading a region of interest: a mask image, a JSON file of polygons, an array, or polygons."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ImageError, ParameterError, first_line
from flawmap.files import expand_home, open_file
from flawmap.images.depth import DEEP_MODES
from flawmap.images.formats import MAX_PIXELS
from flawmap.images.hints import why_missing
from flawmap.images.pages import page_numbers
from flawmap.images.read import convert, decode
from flawmap.images.roi.drawing import Drawing, Polygon
from flawmap.prediction import Size

GIVEN = "roi"
"""What errors call a region that has no file."""
FIELDS = {"include", "exclude", "size"}
MAX_JSON_BYTES = 2**27
"""Room for the photo that labelme keeps in its file."""
MAX_POINTS = 200_000
"""Corners of all polygons together."""
FEWEST_POINTS = 3
JPEG = b"\xff\xd8\xff"
EXCLUDED = "exclude"
"""Label of labelme's shapes that are not inspected; those of any other label are."""
EXPECTED = (
    "expected a mask image, a .json file of polygons, a mask as a bool array (H, W), or polygons: lists of 3 or more "
    "points [x, y]"
)


def read_roi(value: Any) -> Drawing:  # noqa: ANN401 (whatever a user gives)
    """The region that a user gives. Raises ParameterError, which names the file and the remedy.

    Args:
        value: path of a mask image (anything but 0 is inspected) or of a .json file; a bool or integer array (H, W);
            polygons of corners (x, y) in pixels, or one polygon; or {"include": polygons, "exclude": polygons,
            "size": (height, width)}.
    """
    if isinstance(value, (str, os.PathLike)):
        path = expand_home(value)
        return _read_json(path) if path.suffix.lower() == ".json" else _read_image(path)
    if (
        isinstance(value, np.ndarray)
        and value.ndim == 2
        and (value.dtype.kind == "b" or (value.dtype.kind in "ui" and value.shape[1] != 2))
    ):
        return _of_mask(value, GIVEN)
    if isinstance(value, Mapping):
        return _of_fields(value, GIVEN)
    is_list = isinstance(value, Sequence) and not isinstance(value, bytes) and len(value) > 0
    if is_list or (isinstance(value, np.ndarray) and value.ndim in (2, 3) and value.shape[-1] == 2 and value.size):
        return _of_fields({"include": [value] if _is_polygon(value) else value}, GIVEN)
    raise ParameterError(f"{GIVEN}: {EXPECTED}; got {_shown(value)}")


def _of_mask(values: NDArray[Any], name: str) -> Drawing:
    if values.size == 0:
        raise ParameterError(f"{name}: the mask has no pixels; {EXPECTED}")
    mask = values != 0
    if not mask.any():
        raise ParameterError(f"{name}: the mask is 0 everywhere, so nothing is inspected; paint what is to be white")
    if mask.all():
        raise ParameterError(
            f"{name}: the mask is 0 nowhere, so that nothing is left out. Paint what is not to be inspected black (0), "
            f"or leave out the region"
        )
    return Drawing(name, mask, size=(mask.shape[0], mask.shape[1]))


def _read_image(path: Path) -> Drawing:
    """A mask image; of a colour picture and of transparency it is not clear what they mean."""
    name = str(path)
    try:
        with open_file(path) as file:
            is_jpeg = file.read(len(JPEG)) == JPEG
        image, _ = decode(path)
        if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
            rgba = np.asarray(convert(image, "RGBA", name))
            if (rgba[..., 3] < 255).any():
                raise ParameterError(
                    f"{name}: has transparent parts, and it is not clear what they mean. Save it without an alpha "
                    f"channel, what is to be inspected white and the rest black"
                )
            colours = rgba[..., :3]
        elif image.mode in DEEP_MODES | {"1", "L"}:
            colours = np.asarray(image)[..., None]
        else:
            colours = np.asarray(convert(image, "RGB", name))
    except FileNotFoundError as error:
        raise ParameterError(f"{name}: {why_missing(name)}") from error
    except ImageError as error:
        raise ParameterError(f"{error}. A region of interest is a mask image, or a .json file of polygons") from error
    except OSError as error:
        raise ParameterError(f"{name}: cannot be read ({first_line(error)})") from error
    if (n_pages := len(page_numbers(path))) > 1:
        raise ParameterError(f"{name}: holds {n_pages} pages or layers; save the mask as a file of one")
    if is_jpeg:
        raise ParameterError(
            f"{name}: is a JPEG file, which does not keep the 0 of what is not inspected. Save the mask as PNG or TIFF"
        )
    if (colours != colours[..., :1]).any():
        raise ParameterError(
            f"{name}: is a picture in colour. A mask is grey: white where the photo is to be inspected, black (0) "
            f"where it is not"
        )
    return _of_mask(colours[..., 0], name)


def _read_json(path: Path) -> Drawing:
    name = str(path)
    try:
        with open_file(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError as error:
        raise ParameterError(f"{name}: {why_missing(name)}") from error
    except OSError as error:
        raise ParameterError(f"{name}: cannot be read ({first_line(error)})") from error
    if len(content) > MAX_JSON_BYTES:
        raise ParameterError(f"{name}: has more than {MAX_JSON_BYTES} bytes; draw simpler polygons, or a mask image")
    try:
        fields = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{name}: is not JSON ({first_line(error)}); write the polygons again") from error
    if not isinstance(fields, dict):
        raise ParameterError(f'{name}: expected {{"include": [[[x, y], ...], ...]}}, got {_shown(fields)}')
    return _of_fields(_from_labelme(fields, name) if "shapes" in fields else fields, name)


def _from_labelme(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a file of labelme: polygons, and rectangles by two corners."""
    fields: dict[str, Any] = {"include": [], "exclude": []}
    shapes = content["shapes"]
    for shape in shapes if isinstance(shapes, list) else [shapes]:
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
        if kind not in ("polygon", "rectangle"):
            raise ParameterError(f"{name}: expected shapes that are a polygon or a rectangle, got {_shown(kind)}")
        points = shape.get("points")
        if kind == "rectangle":
            corners = _polygon(points, f"{name}: a rectangle", fewest=2)
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        fields[EXCLUDED if shape.get("label") == EXCLUDED else "include"].append(points)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return fields if height is None or width is None else {**fields, "size": [height, width]}


def _of_fields(fields: Mapping[Any, Any], name: str) -> Drawing:
    """Polygons to include and to exclude, and the size of the picture."""
    if unknown := sorted(map(str, fields.keys() - FIELDS)):
        raise ParameterError(f"{name}: has an unknown field '{unknown[0]}'; there are include, exclude and size")
    include, exclude = (_polygons(fields.get(part), f"{name}: '{part}'") for part in ("include", "exclude"))
    if not include and not exclude:
        raise ParameterError(f"{name}: holds no polygon; give some in 'include', 'exclude' or both")
    if sum(map(len, (*include, *exclude))) > MAX_POINTS:
        raise ParameterError(f"{name}: its polygons have more than {MAX_POINTS} points; draw simpler ones, or a mask")
    return Drawing(name, include=include, exclude=exclude, size=_size(fields.get("size"), name))


def _polygons(value: object, where: str) -> list[Polygon]:
    if value is None:
        return []
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
        raise ParameterError(f"{where}: expected a list of polygons, got {_shown(value)}")
    if _is_polygon(value):
        raise ParameterError(f"{where}: is one polygon, and not a list of them; write [[[x, y], ...]]")
    return [_polygon(points, f"{where}: polygon {number}") for number, points in enumerate(value, start=1)]


def _is_polygon(value: Any) -> bool:  # noqa: ANN401 (whatever a user gives)
    """Whether it is one list of points, and not a list of such lists."""
    try:
        return isinstance(value[0][0], (int, float, np.number)) and not isinstance(value[0][0], bool)
    except (TypeError, LookupError):
        return False


def _polygon(points: object, where: str, *, fewest: int = FEWEST_POINTS) -> Polygon:
    try:
        found = np.asarray(points)
    except (ValueError, TypeError, OverflowError):  # lists of different lengths
        found = np.empty(0)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iuf":
        raise ParameterError(f"{where}: expected points [x, y], got {_shown(points)}")
    if len(found) < fewest:
        raise ParameterError(f"{where}: has {len(found)} points, it needs {fewest} at least")
    if not np.isfinite(found).all():
        raise ParameterError(f"{where}: has a point that is NaN or infinite; draw it again")
    return found.astype(np.float64)


def _size(value: object, name: str) -> Size | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) != 2 or not all(
        isinstance(side, (int, np.integer)) and not isinstance(side, bool) and 1 <= side <= MAX_PIXELS for side in sides
    ):
        raise ParameterError(f"{name}: 'size' must be [height, width] of the photo in pixels, got {_shown(value)}")
    return int(sides[0]), int(sides[1])


def _shown(value: object) -> str:
    """A value in an error."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
