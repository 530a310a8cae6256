"""Where the results of a run are written, and how they take the place of those of an earlier run.

A folder that holds nothing but an earlier run's results is exchanged as a whole, in one step. Into a folder that holds
anything else, the files are moved one by one, the tables last; nothing else in it is touched.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from flawmap.files import check_replaceable, claim, name_file, open_file, remove_leftovers, replace_atomically
from flawmap.folders import flush, put_in_place, recover_folder
from flawmap.images.formats import LINES, RUN_FOLDERS, TABLE

FILE_COLUMNS = ("overlay", "anomaly_map", "pred_mask")
"""Fields of a row that name a file."""
INSIDE = "results"
"""Name of what is being written inside a folder that holds other files, too."""


@contextmanager
def stage_run(output: Path) -> Iterator[Path]:
    """A new hidden folder for the results of a run, which take their place in `output` when the block ends well.

    Where it does not, nothing in `output` has changed. Raises OSError, which names files by their later place.
    """
    target = Path(os.path.realpath(output))
    recover_folder(target)
    remove_leftovers(target / INSIDE)
    beside = _is_exchangeable(target)
    claimed = target if beside else target / INSIDE
    staged = claimed
    try:
        (target.parent if beside else target).mkdir(parents=True, exist_ok=True)
        with claim(claimed, Path.mkdir) as staged:
            yield staged
            flush(staged)
            if beside and _is_exchangeable(target) and _take_permissions(staged, target):
                put_in_place(staged, target)
            else:  # files of others lie there, or have come meanwhile
                _move_files(staged, target)
    except OSError as error:
        path = Path(os.fsdecode(error.filename or claimed))
        if path.is_relative_to(staged):
            path = output / path.relative_to(staged)
        name_file(error, output if path == claimed else path)
        raise


def _is_exchangeable(target: Path) -> bool:
    """Whether a folder does not exist, or may be exchanged as a whole: nobody else's file or place would be lost.

    Raises OSError for a name that no folder can have.
    """
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return os.access(target.parent, os.W_OK | os.X_OK) or not target.parent.exists()
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return False
    try:
        here = Path(os.path.realpath(os.curdir))
        return not here.is_relative_to(target) and not os.path.ismount(target) and _holds_only_results(target)
    except (OSError, ValueError, RecursionError, MemoryError):  # such as a table that is none
        return False


def _holds_only_results(folder: Path) -> bool:
    """Whether every file in a folder is a table, or is named in the table. Raises OSError, ValueError."""
    named = {TABLE, LINES}
    started = tuple(f"{folder}/" for folder in RUN_FOLDERS)
    if (folder / LINES).exists():
        with open_file(folder / LINES) as lines:
            for line in lines:
                if not isinstance(row := json.loads(line), dict):
                    return False
                values = (row.get(column) for column in FILE_COLUMNS)
                named |= {name for name in values if isinstance(name, str) and name.startswith(started)}
    known_folders = {str(parent) for name in named for parent in PurePosixPath(name).parents}
    for root, folders, names in os.walk(folder, onerror=_fail):
        place = Path(root).relative_to(folder)
        if any((place / name).as_posix() not in named for name in names):
            return False
        if any((place / name).as_posix() not in known_folders or Path(root, name).is_symlink() for name in folders):
            return False
    return True


def _fail(error: OSError) -> None:
    raise error


def _take_permissions(new: Path, old: Path) -> bool:
    """Give a new folder the permissions of the old one, if there is one; False if its owner or group is another."""
    if not old.exists():
        return True
    here, there = new.stat(), old.stat()
    if (here.st_uid, here.st_gid) != (there.st_uid, there.st_gid):
        return False
    new.chmod(stat.S_IMODE(there.st_mode))
    return True


def _move_files(staged: Path, target: Path) -> None:
    """Move all files to their places in a folder, tables last. Raises OSError."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
    for path in files:
        check_replaceable(target / path)
    for path in sorted(files, key=lambda path: path.name in (TABLE, LINES) and len(path.parts) == 1):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        _move(staged / path, Path(os.path.realpath(target / path)))


def _move(source: Path, target: Path) -> None:
    """Move a file over another one, whose permissions it takes over; to another disk, as a copy. Raises OSError."""
    try:
        if target.exists():
            source.chmod(target.stat().st_mode & 0o777)
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replace_atomically(target) as temporary:
            shutil.copyfile(source, temporary)
