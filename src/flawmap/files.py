"""Paths as users write them, and files that are written whole or not at all.

A file is written under a hidden name beside its place. The writer holds a lock on it (flock, where the system has it),
so that the next writer of the same file can tell what a killed one has left, and removes that.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flawmap.errors import ParameterError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST = 100
"""Bytes of a file's name that its hidden names keep: systems allow 255."""

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
    processes that write the same path do not disturb each other: the last to finish stays. What a killed writer of
    this path has left is removed. The block writes into the file that is there; it puts no other in its place. Raises
    OSError, which names the path; also for what is no file, and for a file that may not be written.
    """
    target = Path(os.path.realpath(path))
    check_replaceable(target)
    temporary = target
    try:
        kept = target.stat().st_mode & 0o777 if target.exists() else None
        created = 0o666 if kept is None else kept | 0o600
        with claim(target, lambda new: new.touch(created, exist_ok=False)) as temporary:
            # of a new file what the umask leaves; a library may change it
            mode = temporary.stat().st_mode & 0o777 if kept is None else kept
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(mode)
            temporary.replace(target)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == temporary:
            name_file(error, target)
        raise


@contextmanager
def claim(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new hidden path beside `target`, made by `make`; held while the block runs, and removed after it.

    What killed writers of the same target have left is removed first. Raises OSError.
    """
    remove_leftovers(target)
    lock: int | None = None
    entries: list[tuple[int, Path]] = []
    try:
        while True:
            temporary = hidden_path(target, "partial")
            entries.append((os.getpid(), temporary))
            _unfinished.add(entries[-1])  # before the file is there: Ctrl-C may come between any two steps
            try:
                make(temporary)
            except OSError as error:
                name_file(error, target)
                raise
            try:
                lock = hold(temporary)
            except (FileNotFoundError, BlockingIOError):  # another writer took it for a leftover before it was held
                continue
            except OSError:  # no locks here: then nobody removes leftovers either
                pass
            break
        yield temporary
    finally:
        for entry in entries:
            _remove(entry[1])
        if lock is not None:
            os.close(lock)
        _unfinished.difference_update(entries)


def hold(path: Path) -> int:
    """A descriptor of a file or folder that holds its lock until it is closed, or the process ends.

    Raises BlockingIOError if another holds it, FileNotFoundError if it is gone, another OSError where there are no
    locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hidden_path(target: Path, suffix: str) -> Path:
    """A new name beside a target, for what is being written ("partial") or was there before ("previous")."""
    return target.parent / f".{_short(target.name)}.{secrets.token_hex(8)}.{suffix}"


def find_hidden(target: Path, suffix: str) -> list[Path]:
    """What lies beside a target under its hidden names."""
    own = re.compile(rf"\.{re.escape(_short(target.name))}\.[0-9a-f]{{16}}\.{suffix}")
    try:
        with os.scandir(target.parent) as entries:
            return [target.parent / entry.name for entry in entries if own.fullmatch(entry.name)]
    except OSError:  # what writes there will say why
        return []


def remove_leftovers(target: Path) -> None:
    """Remove what killed writers of this very file or folder have left beside it, but nothing that a live one holds."""
    left = find_hidden(target, "partial")
    if target.exists():  # else what was there before is all that there is
        left += find_hidden(target, "previous")
    for leftover in left:
        with suppress(OSError):
            lock = hold(leftover)
            _remove(leftover)
            os.close(lock)


def _short(name: str) -> str:
    """The name, or of a long one its beginning and a digest that tells it from others."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST:
        return name
    return f"{encoded[: LONGEST - 20].decode(errors='ignore')}.{hashlib.sha256(encoded).hexdigest()[:16]}"


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible: what went wrong before matters more."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def name_file(error: OSError, path: Path) -> None:
    """Complete an error of a write: which file, and what went wrong where a library dropped the system's reason."""
    if error.errno is None:
        error.errno, error.strerror = errno.EIO, f"cannot be written whole ({error}); the disk may be full"
    error.filename = str(path)


def check_replaceable(path: Path) -> None:
    """Raise OSError if something is there that is no file, such as a folder or a device, or may not be written."""
    if path.exists():
        if not path.is_file():
            raise OSError(errno.EINVAL, "is no file", str(path))
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@atexit.register
def _remove_unfinished() -> None:
    """Remove what an interrupt during the clean-up above has left."""
    for process, temporary in _unfinished:
        if process == os.getpid():
            _remove(temporary)
