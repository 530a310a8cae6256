"""Paths as users write them, and files and folders that are written whole or not at all."""

from __future__ import annotations

import atexit
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flawmap.errors import ParameterError

_unfinished: set[tuple[int, Path]] = set()  # (process, temporary path): what an interrupt can leave at any instruction


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in the place of `~`; as it is where there is no such home.

    Raises ParameterError for what is no path: another type, nothing at all, or a null character.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ParameterError(f"expected a path, got {path!r}")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ParameterError(f"expected a path, got {os.fspath(path)!r}")
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for users that do not exist)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened to read its bytes; its descriptor stays with this very file if the path is replaced.

    Raises OSError, which names the path: also for a folder, and for a device or pipe, which could go on for ever.
    """
    # without O_NONBLOCK a pipe would wait for a writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "is a device or pipe, not a file", os.fspath(path))


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    A link stays and what it points to is replaced; a file that is replaced leaves its permissions to the new one. Two
    processes that write the same path do not disturb each other: the last to finish stays. Raises OSError, which names
    the path; also for what is no file, and for a file that may not be written.
    """
    target = Path(os.path.realpath(path))
    check_replaceable(target)
    temporary = target.parent / f".{target.name[:100]}.{secrets.token_hex(8)}.partial"
    entry = (os.getpid(), temporary)
    try:
        _unfinished.add(entry)  # before the file is there: Ctrl-C may come between any two steps
        kept = target.stat().st_mode & 0o777 if target.exists() else None
        created = 0o666 if kept is None else kept | 0o600
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, created)
        # of a new file what the umask leaves; a library may put another file there
        mode = os.fstat(descriptor).st_mode & 0o777 if kept is None else kept
        os.close(descriptor)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == temporary:
            error.filename = str(target)  # a write says what went wrong, and not where
        raise
    finally:
        with suppress(OSError):  # what went wrong before matters more
            temporary.unlink(missing_ok=True)
        _unfinished.discard(entry)


def check_replaceable(path: Path) -> None:
    """Raise OSError if something is there that is no file, such as a folder or a device, or may not be written."""
    if path.exists():
        if not path.is_file():
            raise OSError(errno.EINVAL, "is no file", str(path))
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def remove_leftovers(path: Path) -> None:
    """Remove what writers of this very file have left beside it when they were killed; there must be none at work."""
    path = Path(os.path.realpath(path))
    own = re.compile(rf"\.{re.escape(path.name[:100])}\.[0-9a-f]{{16}}\.partial")
    for left in path.parent.glob(".*.partial"):
        if own.fullmatch(left.name) and left.is_file():
            left.unlink()


@contextmanager
def replace_folder_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    What was at `path` is deleted once the new folder stands there; the caller has made sure that it may be. Raises
    OSError.
    """
    target = Path(path).absolute()
    name = f".{target.name[:100]}.{secrets.token_hex(8)}"
    temporary, previous = target.parent / f"{name}.partial", target.parent / f"{name}.previous"
    entry = (os.getpid(), temporary)
    try:
        _unfinished.add(entry)
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        try:  # a folder that holds files cannot be replaced in one step
            if target.is_dir():
                target.rename(previous)
            temporary.rename(target)
        finally:
            if previous.exists() and not target.exists():
                previous.rename(target)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unfinished.discard(entry)


@atexit.register
def _remove_unfinished() -> None:
    """Remove what an interrupt during the clean-up above has left."""
    for process, temporary in _unfinished:
        if process == os.getpid():
            with suppress(OSError):
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
