"""What reaches the terminal, and what happens when nothing can."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from flawmap.cli.console import literal

HARMFUL = "a\x1b[31m\nb\r\t\x07\u202e[red]\x9b1m.png"


@pytest.fixture
def photos(good_images, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(good_images[i]).save(folder / f"{i}.png")
    return folder


def flawmap(*arguments, shell='exec "$@"'):
    """The command, started by a shell that redirects its streams."""
    command = [sys.executable, "-m", "flawmap", *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", shell, "sh", *command], capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


def test_control_characters_are_shown_and_obeyed_by_no_terminal():
    shown = Text.from_markup(literal(HARMFUL)).plain
    assert shown == r"a\x1b[31m\nb\r\t\x07\u202e[red]\x9b1m.png"
    assert Text.from_markup(literal("Prüfung [1] 検査\u3000é\udc80")).plain == "Prüfung [1] 検査\u3000é\\udc80"


def test_names_with_control_characters_are_one_harmless_line(exported, photos, tmp_path):
    bad = photos / HARMFUL
    bad.write_bytes(b"no image")
    done = flawmap("predict", exported, photos, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert r"a\x1b[31m\nb\r\t" in done.stderr
    assert not set(done.stderr) & {"\x1b", "\r", "\t", "\x07", "\u202e", "\x9b"}
    assert sum("skipped" in line for line in done.stderr.splitlines()) == 1
    assert "[31m" in done.stderr.splitlines()[0]
    missing = flawmap("predict", exported, tmp_path / "x\x1b]0;owned\x07", "-o", tmp_path / "out")
    assert r"x\x1b]0;owned\x07" in missing.stderr
    info = flawmap("info", tmp_path / "x\x1b]0;owned\x07.flawmap")
    assert "\x1b" not in info.stderr + info.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-", "2>/dev/full >&-"])
def test_predict_writes_its_tables_though_nobody_hears_it(exported, photos, tmp_path, redirection):
    (photos / "bad.png").write_bytes(b"no image")
    done = flawmap(
        "predict", exported, photos, "-o", tmp_path / "out", "--skip-bad", shell=f'exec "$@" {redirection}'
    )  # fmt: skip
    assert done.returncode == 0, done
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [str(photos / f"{i}.png") for i in range(3)]
    assert (tmp_path / "out" / "predictions.csv").read_text().startswith("path,pred_score")


def test_an_error_is_an_exit_code_though_nobody_hears_it(exported, tmp_path):
    for redirection in ("2>&-", "2>&- >&-"):
        done = flawmap("predict", exported, tmp_path / "gone", "-o", tmp_path / "out", shell=f'exec "$@" {redirection}')
        assert done.returncode == 1
    closed = flawmap("predict", exported, tmp_path / "gone", "-o", tmp_path / "out", "--json", shell='exec "$@" >&-')
    assert closed.returncode == 1


def test_a_full_disk_is_named_with_the_file_and_changes_nothing(exported, photos, tmp_path):
    options = ("--maps", "--masks")
    assert flawmap("predict", exported, photos, "-o", tmp_path / "out", *options).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    done = flawmap(
        "predict", exported, photos, "-o", tmp_path / "out", *options, "--no-overlays", shell='ulimit -f 8; exec "$@"'
    )
    assert done.returncode == 1
    said = done.stderr.replace("\n", " ")
    assert f"error: {tmp_path / 'out' / 'maps' / '0.npy'}: File too large" in said
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_the_progress_bar_needs_no_open_standard_error(monkeypatch):
    from flawmap.progress import StandardError, report_progress

    class Gone:
        """A terminal that has been closed."""

        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, _=None):
            raise OSError(5, "Input/output error")

        flush = write

    for stream in (None, Gone()):
        monkeypatch.setattr(sys, "stderr", stream)
        with report_progress(True, "Predicting", 2) as advance:
            advance(1)
        Console(file=StandardError()).print("nothing")
