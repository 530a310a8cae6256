"""Memory of this machine, and of the container that the process runs in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MEMORY_VARIABLE = "FLAWMAP_IMAGE_MEMORY"
"""Environment variable with the megabytes that images may take while they are decoded."""
UNKNOWN = 8 * 2**30
"""Taken for the machine's memory where the system does not tell."""


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use, by the machine and the limits of its control groups.

    `root` is where the folders `proc` and `sys` lie.
    """
    found = [limit for path in _limit_files(root) if (limit := _limit(path)) is not None]
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=UNKNOWN)


def _limit_files(root: Path) -> list[Path]:
    """Files that may limit the process: those of its control group and of the groups around it."""
    found = []
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            is_second = controllers == ""
            if not is_second and "memory" not in controllers.split(","):
                continue
            top = root / ("sys/fs/cgroup" if is_second else "sys/fs/cgroup/memory")
            file = "memory.max" if is_second else "memory.limit_in_bytes"
            own = top / group.lstrip("/")
            found += [folder / file for folder in (own, *own.parents) if folder == top or top in folder.parents]
    return found


def _limit(path: Path) -> int | None:
    """The number in such a file; None without one, and for "max"."""
    with suppress(OSError, ValueError):
        limit = int(path.read_text(encoding="utf-8"))
        return limit if limit > 0 else None
    return None


MACHINE_MEMORY = machine_memory()
