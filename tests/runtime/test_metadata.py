"""metadata.json as people edit it, and as nobody should."""

from __future__ import annotations

import json
import shutil

import pytest

from flawmap import Inspector
from flawmap.errors import ModelFileError
from flawmap.runtime.export_files import read_export
from flawmap.runtime.metadata import EDITED, DecisionMetadata


@pytest.fixture
def edit(exported, tmp_path):
    """A function that writes changed metadata beside a copy of the graph; gives the folder."""
    folder = shutil.copytree(exported, tmp_path / "part")
    original = json.loads((exported / "metadata.json").read_text())

    def write(change):
        content = json.loads(json.dumps(original))
        change(content)
        (folder / "metadata.json").write_text(json.dumps(content))
        return folder

    return write


def test_untouched_metadata_decide_as_the_model_does(exported, small_model):
    inspector = Inspector(exported)
    assert inspector.threshold_ == small_model.threshold_
    assert inspector.decision_.pixel_threshold == small_model.decision_.pixel_threshold
    assert inspector.false_alarm_rate == pytest.approx(small_model.decision_.false_alarm_rate)


def test_an_edited_threshold_changes_the_labels_and_drops_the_promise(edit, good_images):
    inspector = Inspector(edit(lambda content: content["decision"].update(threshold=0.001, pixel_threshold=1e9)))
    predictions = inspector.predict(good_images[:3])
    assert [prediction.pred_label for prediction in predictions] == [1, 1, 1]
    assert not any(prediction.pred_mask.any() for prediction in predictions)
    assert inspector.false_alarm_rate is None


def test_a_threshold_of_null_follows_from_its_rate(edit, small_model):
    decision = small_model.decision_

    def by_rates(content):
        content["decision"].update(
            threshold=None, false_alarm_rate=0.5, pixel_threshold=None, pixel_false_alarm_rate=0.05
        )

    inspector = Inspector(edit(by_rates))
    assert (inspector.threshold_, inspector.false_alarm_rate) == (decision.at_rate(0.5).threshold, 0.5)
    assert inspector.decision_.pixel_threshold == decision.at_pixel_rate(0.05).pixel_threshold


def test_a_certified_rate_keeps_its_confidence(edit, small_model):
    """Twelve good images certify 1 - 0.05 ** (1 / 12) = 22 %."""
    wanted = small_model.decision_.certified(0.4, 0.95)
    folder = edit(decision(threshold=None, false_alarm_rate=0.4, confidence=0.95, false_alarm_bound_95=0.9))
    found = Inspector(folder).decision_
    assert (found.threshold, found.false_alarm_rate, found.confidence) == (wanted.threshold, 0.4, 0.95)
    assert found.bound() == wanted.bound() <= 0.4
    kept = DecisionMetadata.of(found)
    assert kept.to_decision().confidence == 0.95
    assert kept.false_alarm_bound_95 == wanted.bound()
    with pytest.raises(ModelFileError, match=r"'decision': to certify 10 % .* at least 29 good images"):
        Inspector(edit(decision(threshold=None, false_alarm_rate=0.1, confidence=0.95)))


def decision(**changes):
    return lambda content: content["decision"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (decision(threshold="high"), "wrong at 'decision.threshold'"),
        (decision(threshold=float("nan")), "wrong at 'decision.threshold'"),
        (decision(threshold=None, false_alarm_rate=None), "both null"),
        (decision(false_alarm_rate=1.5), "wrong at 'decision.false_alarm_rate'"),
        (decision(pixel_false_alarm_rate=0.9), "wrong at 'decision': pixel_false_alarm_rate must lie between"),
        (decision(leave_one_out_scores=[]), "wrong at 'decision.leave_one_out_scores'"),
        (decision(leave_one_out_scores=[1e300]), "wrong at 'decision.leave_one_out_scores"),
        (decision(pixel_quantiles=[1.0]), "wrong at 'decision.pixel_quantiles'"),
        (decision(treshold=3), "wrong at 'decision.treshold'"),
        (lambda content: content.pop("graph"), "wrong at 'graph'"),
        (lambda content: content.update(format_version=3), "written by a newer flawmap"),
        (lambda content: content.update(image_size=[10, 10]), "not those of its preprocessing"),
        (lambda content: content["preprocessing"].update(resize=[10**9, 2]), "wrong at 'document': .*resize"),
        (lambda content: content["preprocessing"].update(aspect="stretch"), "wrong at 'preprocessing.aspect'"),
        (lambda content: content["graph"].update(format="tflite"), "wrong at 'graph.format'"),
        (lambda content: content["graph"].update(files={"../model.xml": "0" * 64}), "expected the files"),
        (lambda content: content["graph"].update(files={}), "expected the files"),
        (lambda content: content["model"]["backbone"].update(precision="bfloat61"), "must be float32 or bfloat16"),
        (lambda content: content["model"]["backbone"].update(precision=["float32"]), "must be float32 or bfloat16"),
        (lambda content: content.update(digest="no"), "wrong at 'digest'"),
        # what nobody edits
        (lambda content: content["decision"]["leave_one_out_scores"].__setitem__(0, 9.5), "digest is wrong"),
        (lambda content: content["decision"]["pixel_quantiles"].__setitem__(0, 9.5), "digest is wrong"),
        (lambda content: content["decision"].update(group_sizes=[1.0] * 12), "digest is wrong"),
        (lambda content: content.update(map_scale=[0.0, 1.0]), "digest is wrong"),
        (lambda content: content.update(decision=None), "digest is wrong"),
        (lambda content: content["model"]["backbone"].update(precision="bfloat16"), "digest is wrong"),
        (lambda content: content.pop("digest"), "digest is wrong"),
        (lambda content: content.update(format_version=1), "digest is wrong"),
    ],
)
def test_wrong_metadata_are_refused(edit, change, message):
    with pytest.raises(ModelFileError, match=message):
        Inspector(edit(change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"[]", "wrong at 'document'"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_a_file_that_is_no_metadata_is_refused(tmp_path, content, message):
    (tmp_path / "metadata.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        Inspector(tmp_path)


def test_format_1_has_no_digest(edit, small_model):
    def older(content):
        content.update(format_version=1)
        del content["digest"]

    assert Inspector(edit(older)).threshold_ == small_model.threshold_


def test_every_flipped_digit_outside_the_thresholds_is_refused(edit, exported):
    """Every digit of the document becomes another one; what still loads differs in what people edit alone."""
    text = (exported / "metadata.json").read_text()
    folder = edit(lambda _: None)
    original = Inspector(folder).metadata
    edited = dict.fromkeys(EDITED)
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    loaded = 0
    for place in digits[:: max(1, len(digits) // 200)]:
        flipped = f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}"
        (folder / "metadata.json").write_text(flipped)
        try:
            metadata = read_export(folder).metadata
        except ModelFileError:
            continue
        loaded += 1
        assert metadata.model_copy(update={"decision": None}) == original.model_copy(update={"decision": None})
        assert metadata.decision.model_copy(update=edited) == original.decision.model_copy(update=edited)
    assert loaded < 60


def test_other_programs_may_write_numbers_and_names_in_their_own_way(edit, exported):
    folder = edit(lambda _: None)
    content = json.loads((exported / "metadata.json").read_text(), parse_float=lambda text: Written(float(text)))
    text = json.dumps(dict(reversed(content.items())), default=None)
    (folder / "metadata.json").write_text(text.replace('": ', '":   ').replace("0.0,", "0,"))
    assert Inspector(folder).threshold_ == Inspector(exported).threshold_


class Written(float):
    """A number as another program writes it."""

    def __repr__(self):
        return f"{float(self):.17e}" if self else "0"


def test_a_folder_without_metadata_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(
            ModelFileError, match=r"metadata\.json: no such file; expected a folder of `flawmap export`"
        ):
            Inspector(folder)
