"""What users write as paths."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["expand_home"]


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in the place of `~`; as it is where there is no such home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for users that do not exist)
