from __future__ import annotations

import unicodedata

import pytest

from flawmap.errors import ImageError
from flawmap.images import collect, read_image
from flawmap.images.hints import find_meant, why_missing, why_no_match


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with one file."""
    (tmp_path / "lot").mkdir()
    (tmp_path / "lot" / "x.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "lot/x.png\n", '"lot/x.png"', "'lot/x.png'", " lot/x.png ", "\u201clot/x.png\u201d", "lot\\x.png", "LOT/X.PNG",
        "C:\\data\\lot\\x.png", "C:\\data\\lot\\X.PNG\r\n", "D:/lot/x.png", 'lot/"x.png"',
    ],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_what_was_meant_is_found(text):
    assert find_meant(text) == "lot/x.png"
    assert why_missing(text) == "no such file or folder; did you mean lot/x.png?"
    with pytest.raises(ImageError, match=r"did you mean lot/x\.png\?"):
        collect(text)
    with pytest.raises(ImageError, match=r"no such file; did you mean lot/x\.png\?"):
        read_image(text)


def test_absolute_paths_and_addresses_of_files(folder):
    assert find_meant(f"file://{folder}/lot/x.png") == f"{folder}/lot/x.png"
    assert find_meant(f'"{folder}/lot/x.png"') == f"{folder}/lot/x.png"
    assert find_meant(f"{folder}/C:\\photos\\lot\\x.png") == f"{folder}/lot/x.png"


def test_the_other_unicode_normalisation(folder):
    composed, decomposed = (unicodedata.normalize(form, "lot/Stück é.png") for form in ("NFC", "NFD"))
    assert composed != decomposed
    (folder / decomposed).touch()
    assert find_meant(composed) == decomposed
    assert why_missing(composed, "file") == (
        f"no such file; did you mean {decomposed}? Its letters are composed in another way (Unicode NFC or NFD)"
    )
    assert find_meant(f"{folder}/{composed}") == f"{folder}/{decomposed}"


def test_globs_that_match_nothing():
    assert why_no_match("'lot/*.png'") == "; did you mean lot/*.png?"
    assert why_no_match("lot\\*.png\n") == "; did you mean lot/*.png?"
    assert why_no_match("lot/[ab].png") == "; brackets stand for one of the characters in them"
    assert why_no_match("lot/*.png") == ""


@pytest.mark.usefixtures("folder")
def test_nothing_near_is_said_plainly():
    assert why_missing("lot/y.png") == "no such file or folder; check the path"
    assert why_missing("C:\\other\\y.png", "file") == (
        "no such file; it is a path of Windows: write it as this machine names it"
    )
    for impossible in ("x" * 5000, "nul\0", "lot/x.png/y", "\udcff"):
        assert why_missing(impossible) == "no such file or folder; check the path"
