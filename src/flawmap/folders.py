"""Folders that are written whole or not at all: a new one takes the place of the old one in one step.

Linux and macOS exchange two folders in one step. Elsewhere the old one is moved aside first; if the process is killed
just then, the next use of the folder puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flawmap.files import claim, find_hidden, hidden_path, hold, name_file

EXCHANGE = 2
"""Both RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS."""
AT_FDCWD = -100
WITHOUT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""How a system or file system says that it exchanges nothing."""
MOVED_MEANWHILE = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
"""How a rename says that another writer has just moved the same folder."""
TRIES = 20
PATIENCE = 2.0
"""Seconds to wait for a live process that is between its two renames."""


@contextmanager
def replace_folder_atomically(
    path: str | os.PathLike[str], *, check: Callable[[], None] | None = None
) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    What was at `path` is deleted once the new folder stands there: `check` is called just before, and raises if it may
    not be. What killed writers have left is removed, or put back if it is all there is. Raises OSError.
    """
    target = Path(path).absolute()
    recover_folder(target)
    with claim(target, Path.mkdir) as temporary:
        try:
            yield temporary
            flush(temporary)
            if check is not None:
                check()
            put_in_place(temporary, target)
        except OSError as error:
            if error.errno is None or error.filename is None:
                name_file(error, target)
            raise


def recover_folder(path: str | os.PathLike[str]) -> None:
    """If a folder is missing because its writer was killed between two renames, put the old one back."""
    target = Path(path).absolute()
    end = time.monotonic() + PATIENCE
    while not os.path.lexists(target) and (aside := find_hidden(target, "previous")):
        lock: int | None = None
        try:
            lock = hold(newest := max(aside, key=_changed))
        except OSError as error:  # a live writer holds it and will soon be done; or there are no locks here
            if time.monotonic() < end:
                time.sleep(0.01)
                continue
            if isinstance(error, BlockingIOError):
                return
        with suppress(OSError):  # what reads there will say why
            newest.rename(target)
        if lock is not None:
            os.close(lock)
        return


def flush(folder: Path) -> None:
    """Have the disk hold the files of a folder, and the folders below it. Raises OSError."""
    for root, _, names in os.walk(folder):
        for path in (*(Path(root, name) for name in names), Path(root)):
            is_folder = path.is_dir()
            if is_folder and os.name == "nt":
                continue
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def put_in_place(new: Path, target: Path) -> None:
    """Give a folder the name `target`; what had that name is then at `new`, or gone. Raises OSError."""
    for left in reversed(range(TRIES)):
        try:
            if not os.path.lexists(target):
                new.rename(target)
            elif not exchange(new, target):
                _rename_twice(new, target)
            return
        except OSError as error:
            if not left or error.errno not in MOVED_MEANWHILE:
                raise
            time.sleep(0.01)


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system cannot. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    a, b = os.fsencode(first), os.fsencode(second)
    if function := getattr(library, "renameat2", None):
        failed = function(AT_FDCWD, a, AT_FDCWD, b, ctypes.c_uint(EXCHANGE))
    elif function := getattr(library, "renamex_np", None):
        failed = function(a, b, ctypes.c_uint(EXCHANGE))
    else:
        return False
    if failed and (number := ctypes.get_errno()) not in WITHOUT_EXCHANGE:
        raise OSError(number, os.strerror(number), str(second))
    return not failed


def _rename_twice(new: Path, target: Path) -> None:
    """Move the old folder aside, then the new one to its place; `recover_folder` mends it if this is killed between."""
    previous = hidden_path(target, "previous")
    lock: int | None = None
    with suppress(OSError):  # where there are no locks
        lock = hold(target)  # so that nobody takes it for a leftover
    try:
        target.rename(previous)
        new.rename(target)
    finally:
        if os.path.lexists(previous):
            with suppress(OSError):
                previous.rename(new if os.path.lexists(target) else target)
        if lock is not None:
            os.close(lock)


def _changed(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0
