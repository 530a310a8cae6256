from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flawmap import files, folders
from flawmap.files import hidden_path
from flawmap.folders import exchange, recover_folder, replace_folder_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, content):
    with replace_folder_atomically(folder) as temporary:
        (temporary / "sub").mkdir()
        for name in ("a.txt", "sub/b.txt"):
            (temporary / name).write_text(content)


def content_of(folder):
    return {(folder / name).read_text() for name in ("a.txt", "sub/b.txt")}


@pytest.fixture(params=["in one step", "by two renames"])
def way(request, monkeypatch):
    """Both ways of taking the place of a folder."""
    if request.param == "by two renames":
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    return request.param


@pytest.mark.usefixtures("way")
def test_a_folder_appears_whole_and_takes_the_place_of_the_old_one(tmp_path):
    for content in ("old", "new"):
        write(tmp_path / "a", content)
        assert names(tmp_path) == ["a"]
        assert content_of(tmp_path / "a") == {content}


def test_an_error_leaves_the_old_folder(tmp_path, way, monkeypatch):
    write(tmp_path / "a", "old")
    with pytest.raises(TypeError), replace_folder_atomically(tmp_path / "a") as temporary:
        (temporary / "new.txt").write_bytes(b"half" + None)
    with pytest.raises(ValueError, match="keep"), replace_folder_atomically(tmp_path / "a", check=refuse):
        pass
    rename = type(tmp_path).rename

    def fail(path, target):
        if path.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    if way == "by two renames":
        with pytest.raises(OSError, match="Input/output"):
            write(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]
    assert content_of(tmp_path / "a") == {"old"}


def refuse():
    raise ValueError("keep")


def test_two_folders_exchange_their_names(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system exchanges nothing")
    assert content_of(tmp_path / "a") == {"b"}
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "a", tmp_path / "gone")


KILLED = """
import os, signal, sys
from pathlib import Path
from flawmap import folders
if sys.argv[2] == "two renames":
    folders.exchange = lambda *_: False
    rename = Path.rename
    def die(path, target):
        rename(path, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = die
else:
    folders.flush = lambda _: os.kill(os.getpid(), signal.SIGKILL)
with folders.replace_folder_atomically(sys.argv[1]) as temporary:
    (temporary / "a.txt").write_text("half")
"""


@pytest.mark.skipif(files.fcntl is None, reason="needs locks")
@pytest.mark.parametrize("place", ["two renames", "writing"])
def test_the_old_folder_outlives_a_kill_and_the_next_writer_removes_the_rest(tmp_path, place):
    target = tmp_path / "a"
    write(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), place], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert target.exists() == (place == "writing")
    recover_folder(target)
    assert content_of(target) == {"old"}
    assert len(names(tmp_path)) == 2
    write(target, "new")
    assert names(tmp_path) == ["a"]


def test_the_next_writer_puts_the_old_folder_back_before_it_fails(tmp_path):
    write(tmp_path / "a", "old")
    (tmp_path / "a").rename(hidden_path(tmp_path / "a", "previous"))
    with pytest.raises(ValueError, match="keep"), replace_folder_atomically(tmp_path / "a", check=refuse):
        pass
    assert names(tmp_path) == ["a"]
    assert content_of(tmp_path / "a") == {"old"}


@pytest.mark.skipif(files.fcntl is None, reason="needs locks")
def test_a_folder_that_a_live_writer_has_moved_aside_is_waited_for(tmp_path, monkeypatch):
    previous = hidden_path(tmp_path / "a", "previous")
    previous.mkdir()
    lock = files.hold(previous)
    monkeypatch.setattr(folders, "PATIENCE", 0.05)
    recover_folder(tmp_path / "a")
    assert names(tmp_path) == [previous.name]
    monkeypatch.setattr(folders, "PATIENCE", 60)
    threading.Timer(0.05, lambda: os.close(lock)).start()
    recover_folder(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_without_locks_the_old_folder_comes_back_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(folders, "PATIENCE", 0.05)
    hidden_path(tmp_path / "a", "previous").mkdir()
    recover_folder(tmp_path / "a")
    assert names(tmp_path) == ["a"]


WRITER = """
import sys
from flawmap import folders
if sys.argv[2] == "by two renames":
    folders.exchange = lambda *_: False
for number in range(40):
    with folders.replace_folder_atomically(sys.argv[1]) as temporary:
        (temporary / "sub").mkdir()
        for name in ("a.txt", "sub/b.txt"):
            (temporary / name).write_text(f"{sys.argv[3]} {number}")
"""


@pytest.mark.skipif(files.fcntl is None, reason="needs locks")
def test_two_writers_of_one_folder_leave_each_others_alone(tmp_path, way):
    write(tmp_path / "a", "old")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a"), way, str(number)]) for number in range(2)
    ]
    while any(writer.poll() is None for writer in writers):
        assert (tmp_path / "a").exists() or way == "by two renames"
        time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a"]
    assert len(content_of(tmp_path / "a")) == 1
