"""What runs is what was checked: of one export, of regular files, read once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import flawmap.runtime.export_files
from flawmap import Inspector
from flawmap.errors import ModelFileError
from flawmap.files import hidden_path
from flawmap.runtime.export_files import ALIGNMENT, CONSTANTS, EXPORT_FILES, read_export


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "part")


@pytest.fixture
def two_exports(exported, tmp_path):
    """Two whole exports that differ in metadata and graph, and the threshold of each."""
    exports = {}
    for number in (1, 2):
        folder = shutil.copytree(exported, tmp_path / f"export-{number}")
        metadata = read_export(folder).metadata
        files = {}
        for name in metadata.graph.files:
            (folder / name).write_bytes(content := bytes([number]) * 20_000)
            files[name] = hashlib.sha256(content).hexdigest()
        changes = {
            "decision": metadata.decision.model_copy(update={"threshold": float(number)}),
            "graph": metadata.graph.model_copy(update={"files": files}),
        }
        metadata.model_copy(update=changes).write(folder)
        exports[float(number)] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return exports


def test_a_read_beside_a_writer_is_of_one_export(two_exports, tmp_path):
    place = shutil.copytree(tmp_path / "export-1", tmp_path / "place")
    stop, code = tmp_path / "stop", (
        "import sys, shutil; from pathlib import Path; from flawmap.folders import replace_folder_atomically\n"
        "root = Path(sys.argv[1]); number = 0\n"
        "while not (root / 'stop').exists():\n"
        "    number += 1\n"
        "    with replace_folder_atomically(root / 'place') as new:\n"
        "        shutil.copytree(root / f'export-{1 + number % 2}', new, dirs_exist_ok=True)\n"
    )  # fmt: skip
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    seen = []
    try:
        deadline = time.monotonic() + 60
        while (len(seen) < 150 or len(set(seen)) < 2) and time.monotonic() < deadline:
            export = read_export(place)
            threshold = export.metadata.decision.threshold
            seen.append(threshold)
            for name, content in export.contents.items():
                assert bytes(content) == two_exports[threshold][name]
    finally:
        stop.touch()
        assert writer.wait(60) == 0
    assert set(seen) == {1.0, 2.0}


def test_an_export_that_is_replaced_between_two_files_is_read_again(two_exports, tmp_path, monkeypatch):
    place = shutil.copytree(tmp_path / "export-1", tmp_path / "place")
    opened, open_file = [], flawmap.runtime.export_files.open_file

    def replaced(path):
        opened.append(path.name)
        if len(opened) == 2:
            place.rename(tmp_path / "old")
            shutil.copytree(tmp_path / "export-2", place)
        return open_file(path)

    monkeypatch.setattr(flawmap.runtime.export_files, "open_file", replaced)
    export = read_export(place)
    assert export.metadata.decision.threshold == 2
    assert {name: bytes(content) for name, content in export.contents.items()} == {
        name: content for name, content in two_exports[2.0].items() if name != "metadata.json"
    }
    assert len(opened) == 2 * (1 + len(EXPORT_FILES))


def test_what_was_checked_runs_whatever_happens_to_the_folder(folder, scratched, monkeypatch):
    wanted = Inspector(folder).predict(scratched)
    read = flawmap.runtime.inspector.read_export

    def spoilt(path):
        export = read(path)
        for file in folder.iterdir():
            file.write_bytes(b"spoilt")
        return export

    monkeypatch.setattr(flawmap.runtime.inspector, "read_export", spoilt)
    found = Inspector(folder).predict(scratched)
    assert np.array_equal(found.anomaly_map, wanted.anomaly_map)


def test_constants_are_aligned(folder):
    for name, content in read_export(folder).contents.items():
        assert bytes(content) == (folder / name).read_bytes()
        if name in CONSTANTS:
            assert content.ctypes.data % ALIGNMENT == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "gone"])
def test_what_is_no_regular_file_is_refused_at_once(folder, kind):
    for name in sorted(path.name for path in folder.iterdir()):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "device":
            (folder / name).symlink_to("/dev/zero")
        elif kind == "folder":
            (folder / name).mkdir()
        done = threading.Event()
        refused = []

        def attempt(done=done, refused=refused):
            try:
                Inspector(folder)
            except ModelFileError as error:
                refused.append(str(error))
            done.set()

        threading.Thread(target=attempt, daemon=True).start()
        assert done.wait(20)
        assert name in refused[0]
        assert ("no such file" if kind == "gone" and name == "metadata.json" else "cannot be read") in refused[0]
        (folder / name).rmdir() if kind == "folder" else (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(kept)
    Inspector(folder)


def test_metadata_without_end_are_refused(folder, monkeypatch):
    monkeypatch.setattr(flawmap.runtime.export_files, "MAX_METADATA_BYTES", 100)
    with pytest.raises(ModelFileError, match="larger than any metadata"):
        read_export(folder)


def test_files_that_do_not_fit_into_memory_are_refused(folder, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(flawmap.runtime.export_files, "_read_aligned", full)
    monkeypatch.setattr(flawmap.runtime.export_files, "CONSTANTS", ("model.bin", "model.onnx"))
    with pytest.raises(ModelFileError, match=r"model\.\w+: its \d+ bytes do not fit into memory"):
        read_export(folder)


def test_an_export_that_its_killed_writer_moved_aside_is_found(folder):
    folder.rename(hidden_path(folder, "previous"))
    Inspector(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["part"]
