"""A file that all processes of a test run share: the first one that needs it makes it."""

from __future__ import annotations

import os
import time
from pathlib import Path

LONGEST = 300
"""Seconds that a process waits for another one to make a file."""


def once(tmp_path_factory, name, make):
    """The path of a file of this name, written in one step by `make(path)` of one process."""
    base = Path(tmp_path_factory.getbasetemp())
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    claim, end = path.with_name(f"{name}.claim"), time.monotonic() + LONGEST
    while not path.exists():
        try:
            claim.mkdir()
        except FileExistsError:
            if time.monotonic() > end:
                raise TimeoutError(f"no other process has made {path}") from None
            time.sleep(0.1)
            continue
        try:
            make(path)
        finally:
            claim.rmdir()
    return path
