from __future__ import annotations

import os
import stat
import sys

import pytest

from flawmap import files as atomic
from flawmap.files import remove_leftovers, replace_atomically, replace_folder_atomically


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_appears_whole_with_the_usual_permissions(tmp_path):
    umask = os.umask(0o027)
    try:
        with replace_atomically(tmp_path / "a.txt") as temporary:
            temporary.write_text("whole")
            assert not (tmp_path / "a.txt").exists()
    finally:
        os.umask(umask)
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(TypeError), replace_atomically(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"half" + None)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_link_stays_and_a_file_keeps_its_permissions(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o600)
    (tmp_path / "link").symlink_to("a.txt")
    with replace_atomically(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="is no file"), replace_atomically(tmp_path / name):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o444)
    with pytest.raises(PermissionError), replace_atomically(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_atomically(tmp_path / "none" / "a.txt"):
        pass
    assert not atomic._unfinished


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="No space") as raised, replace_atomically(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.txt")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file object the interrupt orphans
def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    target = tmp_path / "a.txt"
    n_interrupts = 0
    while True:
        n_interrupts += 1
        target.write_text("old")
        interrupted = _write_with_an_interrupt_after(n_interrupts, target)
        atomic._remove_unfinished()  # what the end of the process does
        atomic._unfinished.clear()
        assert names(tmp_path) == ["a.txt"], f"after line {n_interrupts}"
        assert target.read_text() in {"old", "new"}, f"after line {n_interrupts}"
        if not interrupted:
            break
    assert n_interrupts > 20
    assert target.read_text() == "new"


def _write_with_an_interrupt_after(n_lines, target):
    """Replace `target`, with a KeyboardInterrupt before line `n_lines` of the code that does it; False past its end."""
    left = n_lines

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in {atomic.__file__, atomic.contextmanager.__code__.co_filename}:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with replace_atomically(target) as temporary:
            temporary.write_text("new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_a_folder_appears_whole_and_takes_the_place_of_the_old_one(tmp_path):
    for content in ("old", "new"):
        with replace_folder_atomically(tmp_path / "a") as temporary:
            (temporary / f"{content}.txt").write_text(content)
        assert names(tmp_path) == ["a"]
        assert names(tmp_path / "a") == [f"{content}.txt"]


def test_an_error_leaves_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.txt").write_text("old")
    with pytest.raises(TypeError), replace_folder_atomically(tmp_path / "a") as temporary:
        (temporary / "new.txt").write_bytes(b"half" + None)
    assert names(tmp_path) == ["a"]
    rename = type(tmp_path).rename

    def fail(path, target):
        if path.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(OSError, match="Input/output"), replace_folder_atomically(tmp_path / "a") as temporary:
        (temporary / "new.txt").write_text("new")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old.txt"]


def test_only_leftovers_of_the_very_file_are_removed(tmp_path):
    own = ".tables.md.0123456789abcdef.partial"
    foreign = [".tables.md.partial", ".tables.html.0123456789abcdef.partial", ".a.partial", "tables.md", f"{own}.bak"]
    for name in (own, *foreign):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "tables.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(foreign)
