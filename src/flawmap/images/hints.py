"""Why an image cannot be read, in words; and what a user probably meant by a path that leads nowhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, UnidentifiedImageError

from flawmap.errors import ParameterError, first_line
from flawmap.images.formats import NO_MEMORY, TOO_LARGE

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WINDOWS = re.compile(r"(?P<base>.*/)?(?P<drive>[A-Za-z]):[\\/](?P<rest>.*)", re.DOTALL)
AROUND = " \t\r\n\"'\u201c\u201d\u2018\u2019"
"""What a copied path may have around it: blanks, line ends, quotes."""


def refuse_stream(text: str) -> None:
    """Raise ParameterError for what names a camera, an address or standard input, which are not read."""
    if text == "-":
        raise ParameterError(
            "-: images are not read from standard input; name files, or give arrays to `predict` in Python"
        )
    is_address = ADDRESS.match(text) is not None and not text.startswith("file://")
    if is_address or text.isdecimal() or text.startswith("/dev/video"):
        what = "is an address, and flawmap opens no connection" if is_address else "is no file; if it is a camera"
        raise ParameterError(
            f"{text}: {what}{';' if is_address else ','} record it to files, or give its frames, RGB arrays, to "
            f"`iter_predict` in Python"
        )


def why_missing(path: str | os.PathLike[str], what: str = "file or folder") -> str:
    """Why there is nothing at a path, and what to do: another path that was probably meant, where there is one."""
    text = os.fspath(path)
    if os.path.islink(text):  # noqa: PTH114 (Path.is_link raises for impossible names)
        return f"is a link to {os.readlink(text)}, where there is nothing; mend the link"  # noqa: PTH115
    if (meant := find_meant(text)) is not None:
        same = unicodedata.normalize("NFC", meant) == unicodedata.normalize("NFC", text)
        why = " Its letters are composed in another way (Unicode NFC or NFD)" if same else ""
        return f"no such {what}; did you mean {meant}?{why}"
    if WINDOWS.fullmatch(text):
        return f"no such {what}; it is a path of Windows: write it as this machine names it"
    return f"no such {what}; check the path"


def why_no_match(pattern: str) -> str:
    """A hint, for the end of a message, on a glob that matches nothing; or ""."""
    plain = pattern.strip(AROUND).replace("\\", "/")
    if plain != pattern:
        return f"; did you mean {plain}?"
    return "; brackets stand for one of the characters in them" if "[" in pattern else ""


def find_meant(text: str) -> str | None:
    """A path that exists and differs from a text in quotes, blanks, slashes, case or Unicode normalisation; or None."""
    for candidate in _candidates(text):
        try:
            found = _find_alike(Path(candidate))
        except (OSError, ValueError):
            continue
        if found is not None and str(found) != text:
            return str(found)
    return None


def _candidates(text: str) -> Iterator[str]:
    bare = "/".join(part.strip(AROUND) for part in text.strip(AROUND).split("/"))
    yield bare
    if text.startswith("file://"):
        yield unquote(urlsplit(text.strip(AROUND)).path)
    if match := WINDOWS.fullmatch(bare):
        parts = match["rest"].replace("\\", "/").split("/")
        yield "/".join([f"/mnt/{match['drive'].lower()}", *parts])
        # a table that was made on another machine lies beside its images, or above them
        yield from (f"{match['base'] or ''}{'/'.join(parts[first:])}" for first in range(len(parts)))
    elif "\\" in bare:
        yield bare.replace("\\", "/")


def _find_alike(path: Path) -> Path | None:
    """The path that exists, each of whose names is the same but for case and Unicode normalisation; or None."""
    found = Path(path.anchor)
    for name in path.parts[1 if path.anchor else 0 :]:
        if not os.path.lexists(found / name):
            key = _key(name)
            name = next((other for other in sorted(os.listdir(found)) if _key(other) == key), "")  # noqa: PTH208
            if not name:
                return None
        found /= name
    return found if path.parts else None


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def why_unreadable(name: str, error: Exception) -> str:
    """Why an image could not be read, by what Pillow or the system raised, and what to do."""
    match error:
        case MemoryError():
            return NO_MEMORY
        case FileNotFoundError():
            return why_missing(name, "file")
        case IsADirectoryError():
            return "is a folder, expected an image file"
        case PermissionError():
            return "may not be read by this user; change its permissions"
        case UnidentifiedImageError():
            return (
                "is not an image of a known format; expected PNG, JPEG, TIFF, BMP, WebP, ... with 8 or 16 bits per "
                "channel"
            )
        case Image.DecompressionBombError():
            return f"has {TOO_LARGE}"
        case OSError() if error.errno is not None:
            return f"cannot be read ({error.strerror}); check the path and the disk"
    # Pillow's decoders raise nearly anything for damaged files: SyntaxError, struct.error, IndexError, ...
    return f"is damaged or cut short ({first_line(error)}); copy or record it again"
