from __future__ import annotations

import hashlib
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from damaged_models import damage_bytes
from flawmap import PaDiM, load
from flawmap.detectors.document import read_document
from flawmap.detectors.restoring import restore_detector
from flawmap.errors import BackboneError, ModelFileError, ParameterError, WeightsError
from flawmap.files import replace_atomically
from flawmap.images import LEARNT
from flawmap.model_file import MAX_ROWS, ModelFile, Streamed, write_model_file
from model_files import assemble, contents


@pytest.fixture(scope="module")
def model(good_images):
    return PaDiM(backbone="resnet10t", pretrained=False, resize=64, n_features=30, refit_below=0).fit(good_images)


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / "part.flawmap")
    return tmp_path / "part.flawmap"


def rewrite(path, change_document=lambda _: None, change_tensors=lambda _: None):
    """The file with its JSON document or tensors changed."""
    document, tensors = contents(path)
    change_document(document)
    change_tensors(tensors)
    assemble(path, document, tensors)


def test_a_loaded_model_predicts_the_same(model, path, good_images):
    for one, other in zip(model.predict(good_images), load(path).predict(good_images), strict=True):
        np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, rtol=1e-4)  # torch first, OpenVINO later


def test_the_same_data_and_seed_give_the_same_bytes(path, good_images, tmp_path):
    again = PaDiM(backbone="resnet10t", pretrained=False, resize=64, n_features=30, refit_below=0).fit(good_images)
    again.save(tmp_path / "again.flawmap")
    assert (tmp_path / "again.flawmap").read_bytes() == path.read_bytes()
    load(path).save(tmp_path / "resaved.flawmap")
    assert (tmp_path / "resaved.flawmap").read_bytes() == path.read_bytes()


def test_the_document_states_what_the_model_is(path):
    document = read_document(ModelFile(path))
    assert document.backbone.name == "resnet10t"
    assert document.backbone.layers == ("layer1", "layer2", "layer3")
    parameters = document.parameters
    assert (parameters["resize"], parameters["seed"], parameters["n_features"]) == (64, 0, 30)
    assert (document.n_images, len(document.learnt["channels"])) == (12, 30)
    assert {"flawmap", "torch", "timm"} <= set(document.versions)
    assert not {"device", "weights", "workers", "cache_mb"} & set(parameters)


def test_a_file_cut_short_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, 2000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"part\.flawmap"):
            load(path)


def test_other_files_are_refused(path, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        path.write_bytes(rng.bytes(3000))
        with pytest.raises(ModelFileError):
            load(path)
    save_file({"a": load_something()}, path)
    with pytest.raises(ModelFileError, match="no flawmap model"):
        load(path)
    with pytest.raises(ModelFileError, match="no such model file"):
        load(tmp_path / "nowhere.flawmap")
    with pytest.raises(ModelFileError, match="is a folder, not a model file"):
        load(tmp_path)


def load_something():
    import torch

    return torch.zeros(3)


HEADERS = {
    "length beyond the file": struct.pack("<Q", 2**40) + b"{}",
    "largest length": struct.pack("<Q", 2**64 - 1) + b"{}",
    "nested without end": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "no object": struct.pack("<Q", 2) + b"[]",
    "no text": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "metadata of another type": struct.pack("<Q", 23) + b'{"__metadata__": [1, 2]}'[:23],
    "document of another type": struct.pack("<Q", 34) + b'{"__metadata__": {"flawmap": "[]"}}'[:34],
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_refused(path, name):
    path.write_bytes(HEADERS[name] + b"\0" * 64)
    with pytest.raises(ModelFileError):
        load(path)


def set_in(*keys, value):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_in("backbone", "grids", value=[[16000, 16000], [8, 8], [4, 4]]),
        set_in("backbone", "grids", value=[[-1, 16], [8, 8], [4, 4]]),
        set_in("backbone", "grids", value=[[16, 16], [8, 8]]),
        set_in("backbone", "grids", value=[[8, 8], [8, 8], [4, 4]]),
        set_in("backbone", "n_channels", value=[10**9, 128, 256]),
        set_in("backbone", "n_channels", value=[64, 128, 0]),
        set_in("learnt", "channels", value=list(range(500, 530))),
        set_in("learnt", "channels", value=list(range(29, -1, -1))),
        set_in("learnt", "channels", value=[]),
        set_in("learnt", "channels", value=[-1, *range(29)]),
        set_in("n_images", value=1),
        set_in("learnt", "regularization", value=0.1),
        set_in("learnt", "regularization", "ridge", value=-0.1),
        set_in("learnt", "regularization", "sharing", value=1.1),
        set_in("decision", "grouped", value=True),
        set_in("decision", "method", value="guess"),
        set_in("parameters", "resize", value=[0, 64]),
        set_in("parameters", "crop", value=[65, 65]),
        set_in("parameters", "resize", value=[10**9, 10**9]),
        set_in("parameters", "aspect", value="stretch"),
        set_in("backbone", "sha256", value="x"),
        set_in("backbone", "layers", value=[]),
        set_in("detector", value="os.system"),
        set_in("surprise", value=1),
        lambda document: document["learnt"].pop("channels"),
        lambda document: document.pop("parameters"),
    ],
)
def test_hostile_descriptions_are_refused(path, change):
    rewrite(path, change)
    with pytest.raises(ModelFileError, match=r"part\.flawmap"):
        load(path)


@pytest.mark.parametrize("name", ["unheard_of", "hf-hub:someone/something", "local-dir:/etc", "../../etc/passwd"])
def test_hostile_backbones_are_refused_without_a_look_at_the_network(path, name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("reached for the network"))
    rewrite(path, set_in("backbone", "name", value=name))
    with pytest.raises(BackboneError, match="unknown backbone"):
        load(path)


def test_a_newer_format_says_to_upgrade(path):
    rewrite(path, set_in("format_version", value=4))
    with pytest.raises(ModelFileError, match=r"newer flawmap \(format 4; this one reads up to 3\)"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("layer1.mean"), "layer1.mean"),
        (lambda tensors: tensors.update(extra=tensors["layer1.mean"].clone()), "extra"),
        (lambda tensors: tensors.update({"layer1.mean": tensors["layer1.mean"][:-1].clone()}), "layer1.mean"),
        (lambda tensors: tensors["layer2.own"].view(-1)[5:6].fill_(float("nan")), "layer2.own.*NaN"),
        (lambda tensors: tensors["layer3.mean"].view(-1)[0:1].fill_(float("inf")), "layer3.mean.*infinite"),
    ],
)
def test_wrong_tensors_are_refused_by_name(path, change, message):
    rewrite(path, change_tensors=change)
    with pytest.raises(ModelFileError, match=message):
        load(path)


def test_tensors_of_other_types_are_refused(path):
    tensors = load_file(path)
    for dtype in (torch.float64, torch.int32, torch.bool):
        changed = {**tensors, "layer1.mean": tensors["layer1.mean"].to(dtype)}
        save_file(changed, path, {"flawmap": "{}"})
        with pytest.raises(ModelFileError, match=r"layer1\.mean' is not of F32, F16, BF16"):
            load(path)


def test_a_damaged_file_is_refused_or_predicts_the_very_same(path, good_images):
    """Any bit of a mean, a factor, a threshold or the header: nothing changes a score in silence."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    wanted = outcome(path, good_images[0])
    n_whole = 0
    for _ in range(150):
        changed = damage_bytes(path.name, whole, rng)
        path.write_bytes(changed)
        try:
            found = outcome(path, good_images[0])
        except ModelFileError:
            continue
        assert found == wanted
        n_whole += 1
    assert n_whole < 5  # a block that was zero before, or swapped with itself


def outcome(path, image):
    """What a model says of an image: everything that follows from its file."""
    model = load(path, runtime="torch")
    prediction = model.predict(image)
    return prediction.pred_score, prediction.pred_label, prediction.p_value, prediction.anomaly_map.tobytes()


def test_a_flipped_bit_of_every_part_is_found(path):
    """The top bit of an exponent, where a value near 1 becomes infinite or tiny; and a digit of the threshold."""
    whole = path.read_bytes()
    file = ModelFile(path)
    starts = {name: entry.start for name, entry in file._file.entries.items()}
    for name, start in starts.items():
        changed = bytearray(whole)
        changed[start + 3] ^= 0x40
        path.write_bytes(bytes(changed))
        with pytest.raises(ModelFileError, match=f"the checksum of tensor '{name}' is wrong"):
            load(path)
    position = whole.index(b"threshold") + len(b'threshold\\":') + 2
    changed = bytearray(whole)
    changed[position] = ord("7") if changed[position] != ord("7") else ord("8")
    path.write_bytes(bytes(changed))
    with pytest.raises(ModelFileError, match="the checksum of its description is wrong"):
        load(path)


def test_a_file_without_its_checksums_is_refused(path):
    document, tensors = contents(path)
    text = json.dumps(document)
    right = hashlib.sha256(text.encode()).hexdigest()
    for metadata in ({"flawmap": text}, {"flawmap": text, "sha256": right}, {"flawmap": text, "sha256": "0" * 64}):
        save_file(tensors, path, metadata)
        with pytest.raises(ModelFileError, match="checksum"):
            load(path)


def test_a_file_that_is_replaced_while_it_is_read_does_not_mix(model, path, good_images, tmp_path):
    other = PaDiM(backbone="resnet10t", pretrained=False, resize=64, n_features=30, refit_below=0).fit(good_images[:8])
    other.save(tmp_path / "other.flawmap")
    opened = ModelFile(path)
    (tmp_path / "other.flawmap").replace(path)
    found = restore_detector(PaDiM, opened, read_document(opened))
    assert (found.n_images_, found.threshold_) == (model.n_images_, model.threshold_)
    assert np.array_equal(found.factor_.mean[0], model.factor_.mean[0])


def test_what_is_no_path_is_a_parameter_error(tmp_path):
    for nothing in (None, 3, b"part.flawmap", ["part.flawmap"]):
        with pytest.raises(ParameterError, match="expected a path"):
            load(nothing)
    with pytest.raises(ModelFileError, match="cannot be read"):
        load(tmp_path / ("n" * 300))
    for nothing in ("", "a\0b"):
        with pytest.raises(ParameterError, match="expected a path"):
            load(nothing)


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.flawmap")
    (tmp_path / "zero.flawmap").symlink_to("/dev/zero")
    for name in ("pipe.flawmap", "zero.flawmap"):
        with pytest.raises(ModelFileError, match="is a device or pipe"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        set_in("parameters", "resize", value=[4096, 4096]),
        set_in("backbone", "name", value="vit_huge_patch14_224"),
        set_in("backbone", "n_channels", value=[64, 128, 300]),
        set_in("backbone", "seed", value=2**64),
    ],
)
def test_claims_are_compared_before_a_network_is_built(path, change, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("built a network")

    monkeypatch.setattr("flawmap.backbones.loading._drawn", refuse)
    monkeypatch.setattr("flawmap.backbones.loading.load_weights", refuse)
    rewrite(path, change)
    with pytest.raises((ModelFileError, BackboneError)):
        load(path)


def test_a_path_that_the_file_names_is_not_opened(path, tmp_path):
    named = tmp_path / "elsewhere" / "weights.pth"
    named.parent.mkdir()
    os.mkfifo(named)  # to open it would wait for ever

    def change(document):
        document["backbone"] |= {"pretrained": True, "weights": "weights.pth", "weights_path": str(named)}
        document["parameters"]["pretrained"] = True

    rewrite(path, change)
    with pytest.raises(WeightsError, match="elsewhere"):
        load(path)
    os.mkfifo(path.parent / "weights.pth")  # nor one of its name beside the model that is no file
    with pytest.raises(WeightsError):
        load(path)


def test_saving_where_it_cannot_be_changes_nothing(model, path, tmp_path):
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match=r"cannot be written .*Nothing was changed"):
        model.save(tmp_path / "no" / "such" / "folder.flawmap")
    with pytest.raises(ModelFileError, match="cannot be written"):
        model.save(tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.flawmap"]


def test_a_write_that_is_broken_off_leaves_the_old_file_and_nothing_else(path, tmp_path):
    before = path.read_bytes()
    for error in (KeyboardInterrupt(), OSError("no space left on device")):
        with pytest.raises(type(error)):
            write_half(path, error)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.flawmap"]


def write_half(path, error):
    with replace_atomically(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_writers_of_one_file_do_not_mix(model, tmp_path):
    target = tmp_path / "shared.flawmap"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: model.save(target), range(8)))
    assert load(target).n_images_ == 12
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared.flawmap"]


def test_a_model_file_can_be_read_by_others_as_the_umask_says(path):
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_header_has_room_for_as_many_digests_and_rows_as_there_may_be(tmp_path):
    """A fit on a million images must not fail when it is saved."""
    rows = Streamed((MAX_ROWS, 1), (np.zeros(1, np.float32) for _ in range(MAX_ROWS)))
    document = {"images": {"digests": ["f" * 32] * MAX_ROWS}}
    write_model_file(tmp_path / "large", document, {"gallery": rows})
    file = ModelFile(tmp_path / "large")
    assert len(file.checksums["gallery"]) == len(file.document["images"]["digests"]) == MAX_ROWS


def test_of_more_images_than_that_the_first_are_recognised(good_images, monkeypatch, tmp_path):
    monkeypatch.setattr("flawmap.detectors.document.MAX_ROWS", 3)
    PaDiM(backbone="resnet10t", pretrained=False, resize=64, n_features=30).fit(good_images).save(tmp_path / "m")
    model = load(tmp_path / "m", runtime="torch")
    assert [LEARNT in model.predict(image).remarks for image in good_images[:5]] == [True] * 3 + [False] * 2
