from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from flawmap import files as atomic
from flawmap.errors import ParameterError
from flawmap.files import expand_home, hidden_path, open_file, remove_leftovers, replace_atomically


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


def test_only_leftovers_of_the_very_file_are_removed(tmp_path):
    own = ".tables.md.0123456789abcdef.partial"
    foreign = [".tables.md.partial", ".tables.html.0123456789abcdef.partial", ".a.partial", "tables.md", f"{own}.bak"]
    for name in (own, *foreign):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "tables.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(foreign)


@pytest.mark.parametrize("name", ["part.flawmap", "n" * 250, "ü" * 120, b"\xff.csv".decode(errors="surrogateescape")])
def test_names_of_any_length_and_bytes_can_be_replaced(tmp_path, name):
    for content in ("old", "new"):
        hidden_path(tmp_path / name, "partial").touch()
        with replace_atomically(tmp_path / name) as temporary:
            temporary.write_text(content)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "new"
    assert (
        hidden_path(tmp_path / ("n" * 249), "partial").name.split(".")[2]
        != hidden_path(tmp_path / ("n" * 250), "partial").name.split(".")[2]
    )


WRITE = """
import sys, time
from pathlib import Path
from flawmap.files import replace_atomically
with replace_atomically(sys.argv[1]) as temporary:
    temporary.write_text(sys.argv[2])
    print("writing", flush=True)
    sys.stdin.readline()
"""


def start(code, *arguments):
    """A process that has said a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    return process


def finish(process):
    process.communicate("go on\n", timeout=60)
    return process.returncode


@pytest.mark.skipif(atomic.fcntl is None, reason="needs locks")
def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_live_one(tmp_path):
    target = tmp_path / "a.txt"
    killed, alive = start(WRITE, target, "killed"), start(WRITE, target, "alive")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(names(tmp_path)) == 2
    with replace_atomically(target) as temporary:
        temporary.write_text("new")
        assert len(names(tmp_path)) == 2
    assert len(names(tmp_path)) == 2
    assert target.read_text() == "new"
    assert finish(alive) == 0
    assert target.read_text() == "alive"
    assert names(tmp_path) == ["a.txt"]
    killed.communicate()


def test_a_file_that_is_taken_for_a_leftover_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    hold, calls = atomic.hold, []

    def swept(path):
        calls.append(path)
        if len(calls) == 1:
            path.unlink()
        return hold(path)

    monkeypatch.setattr(atomic, "hold", swept)
    with replace_atomically(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert len(set(calls)) == 2
    assert names(tmp_path) == ["a.txt"]


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    leftover = hidden_path(tmp_path / "a.txt", "partial")
    leftover.touch()
    with replace_atomically(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(names(tmp_path)) == sorted([leftover.name, "a.txt"])


def test_an_error_without_a_reason_says_what_may_be_wrong(tmp_path):
    with (
        pytest.raises(OSError, match=r"10 written.*the disk may be full.*a\.txt"),
        replace_atomically(tmp_path / "a.txt"),
    ):
        raise OSError("20 requested and 10 written")


@pytest.mark.parametrize("path", [None, 3, b"bytes", ["a"], "a\0b"])
def test_what_is_no_path_is_a_parameter_error(path):
    with pytest.raises(ParameterError, match="expected a path, got"):
        expand_home(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, message in {"pipe": "device or pipe", "zero": "device or pipe", ".": "directory", "x": "No such"}.items():
        with pytest.raises(OSError, match=message):
            open_file(tmp_path / name)
