"""Networks that are built for one input size: they are built for another, and weights of positions are resampled."""

from __future__ import annotations

import warnings
from importlib import import_module

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from flawmap import SPADE, Inspector, MahalanobisAD, PaDiM, export_model, load
from flawmap.backbones import load_backbone, size_step
from flawmap.backbones.positions import resample
from flawmap.errors import BackboneError, WeightsError

DINO = "vit_small_patch14_dinov2"
RESAMPLED = {  # by whom, and sizes: one that is not square, one of as many patches as by default
    "vit_tiny_patch16_224": [(96, 160), (112, 448)],
    "deit_tiny_distilled_patch16_224": [(96, 160)],  # two prefix tokens
    "deit3_small_patch16_224": [(96, 160)],  # whose class token has no position
    "vit_small_patch14_reg4_dinov2": [(70, 84)],  # four registers
    "eva02_tiny_patch14_224": [(70, 84)],
    "beit_base_patch16_224": [(96, 160)],  # biases of distances
    "swin_tiny_patch4_window7_224": [(96, 160), (256, 384)],  # windows that shrink, and that stay
}


def pixels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, *size, 3), np.uint8)


@pytest.fixture(scope="module")
def dino_weights(shared):
    path = shared / "weights" / "dinov2_vits14.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """Weights of a small transformer by their own names."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "vit_tiny_patch16_224.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    return path


def timms_own(name, size, state, indices, mean, std, images):
    """Feature maps of the network that timm builds for a size, and whose weights it resamples itself."""
    network = timm.create_model(name, img_size=size, num_classes=0).eval()
    adapt = import_module(type(network).__module__).checkpoint_filter_fn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        missing, _ = network.load_state_dict(adapt(dict(state), network), strict=False)
    assert not [key for key in missing if "index" not in key and "mask" not in key]
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    normalised = ((scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).float()
    with torch.no_grad():
        return network.forward_intermediates(normalised, indices=indices, intermediates_only=True)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in RESAMPLED.items() for size in sizes])
def test_weights_of_positions_are_resampled_as_timm_does(name, size, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model(name)
    state = whole.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors")
    levels = [level["module"] for level in whole.feature_info]
    layers = [levels[1], levels[0]]
    backbone = load_backbone(name, layers=layers, weights=tmp_path / "weights.safetensors", input_size=size)
    config = timm.get_pretrained_cfg(name)
    expected = timms_own(name, size, state, [0, 1], config.mean, config.std, pixels(size))
    for got, wanted in zip(backbone.features(pixels(size)), reversed(expected), strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    usual = load_backbone(name, layers=layers, weights=tmp_path / "weights.safetensors")
    assert backbone.sha256 == usual.sha256  # of the weights, whatever the size


def test_positions_that_lie_as_a_map_are_resampled_whatever_comes_last():
    value = torch.randn(1, 14, 14, 384)
    expected = torch.nn.functional.interpolate(value.permute(0, 3, 1, 2), (6, 10), mode="bicubic", antialias=True)
    for shape, given in (((1, 6, 10, 384), value), ((1, 384, 6, 10), value.permute(0, 3, 1, 2))):
        got = resample(torch.nn.Identity(), "pos_embed", given, shape, (14, 14), (6, 10))
        torch.testing.assert_close(got if shape[1] == 384 else got.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("size", [(448, 448), (140, 224)])
def test_dinov2_gives_the_features_of_timms_dynamic_network(dino_weights, size):
    backbone = load_backbone(DINO, layers=["blocks.8", "blocks.2"], weights=dino_weights, input_size=size)
    torch.testing.assert_close(backbone.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(backbone.std, torch.tensor([0.229, 0.224, 0.225]))
    network = timm.create_model(DINO, dynamic_img_size=True).eval()
    network.load_state_dict({key: value.float() for key, value in load_file(dino_weights).items()})
    images = torch.from_numpy(pixels(size)).permute(0, 3, 1, 2).float() / 255
    normalised = (images - backbone.mean[:, None, None]) / backbone.std[:, None, None]
    with torch.no_grad():
        early, late = network.forward_intermediates(normalised, indices=[2, 8], intermediates_only=True)
    for got, wanted in zip(backbone.features(pixels(size)), (late, early), strict=True):
        assert got.shape == (2, 384, size[0] // 14, size[1] // 14)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_mean_and_deviation_are_those_of_the_weights():
    for name, mean in (("vit_tiny_patch16_224", 0.5), ("deit_tiny_patch16_224", 0.485), (DINO, 0.485)):
        assert load_backbone(name, pretrained=False).mean[0] == pytest.approx(mean)
    tagged = load_backbone("vit_base_patch16_224.mae", layers=["blocks.0"], pretrained=False)
    assert tagged.mean[0] == pytest.approx(0.485)  # and not those of the network's default weights
    assert load_backbone("vit_base_patch16_224", layers=["blocks.0"], pretrained=False).mean[0] == 0.5


def test_sizes_that_patches_do_not_divide_are_refused_with_the_nearest(monkeypatch):
    monkeypatch.setattr("flawmap.backbones.loading.find_weights", lambda *_: pytest.fail("looked for weights first"))
    cases = {
        (DINO, (450, 300)): "450 x 300 .* multiples of 14: 448 x 294 and 462 x 308; .* weights is 518 x 518",
        (DINO, (448, 450)): "448 x 450 .* multiples of 14: 448 x 448 and 448 x 462",
        ("vit_tiny_patch16_224", (10, 40)): "10 x 40 .* multiples of 16: 16 x 32 and 16 x 48",
        ("swin_tiny_patch4_window7_224", (130, 96)): "130 x 96 .* multiples of 32: 128 x 96 and 160 x 96",
    }
    for (name, size), message in cases.items():
        with pytest.raises(BackboneError, match=message):
            load_backbone(name, input_size=size)


def test_networks_that_fit_one_size_alone_are_refused_at_others(tmp_path):
    with pytest.raises(BackboneError, match=r"128 x 96 .*only handles square inputs.* its weights is 224 x 224"):
        load_backbone("nest_tiny", pretrained=False, input_size=(128, 96))
    torch.manual_seed(1)
    save_file(timm.create_model("mixer_s32_224").state_dict(), tmp_path / "mixer.safetensors")
    load_backbone("mixer_s32_224", layers=["blocks.0"], weights=tmp_path / "mixer.safetensors", input_size=(224, 224))
    with pytest.raises(WeightsError, match="such that fit the size they were trained at alone"):
        load_backbone("mixer_s32_224", layers=["blocks.0"], weights=tmp_path / "mixer.safetensors", input_size=(96, 96))


def test_a_transformer_reads_one_block_unless_told_otherwise():
    assert load_backbone(DINO, pretrained=False).layers == ("blocks.8",)
    assert load_backbone("cait_xxs24_224", pretrained=False).layers == ("blocks.17",)


def test_maps_are_told_from_channels_last_even_where_both_are_as_many():
    backbone = load_backbone(
        "swin_tiny_patch4_window7_224", layers=["layers.0"], pretrained=False, input_size=(384, 384)
    )
    images = pixels((384, 384))[:1]
    [maps] = backbone.features(images)
    mean, std = backbone.mean[:, None, None], backbone.std[:, None, None]
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        [channels_last] = backbone.network.network(normalised)
    assert channels_last.shape == maps.shape == (1, 96, 96, 96)
    torch.testing.assert_close(maps, channels_last.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_the_step_of_sizes_is_the_coarsest_stride():
    steps = {DINO: 14, "vit_tiny_patch16_224": 16, "resnet18": 32, "swin_tiny_patch4_window7_224": 32, None: 32}
    assert {name: size_step(name) for name in steps} == steps


def test_missing_weights_name_the_repository_that_has_them(monkeypatch):
    monkeypatch.delenv("FLAWMAP_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(WeightsError, match=r"hf-hub:timm/vit_small_patch14_dinov2\.lvd142m"):
        load_backbone(DINO)


FITTED = {
    "vit_tiny_patch16_224": {"layers": ["blocks.3", "blocks.1"], "resize": (64, 96), "crop": (48, 80)},
    "vit_small_patch14_reg4_dinov2": {"layers": ["blocks.1"], "resize": (56, 84)},
    "swin_tiny_patch4_window7_224": {"layers": ["layers.0", "layers.1"], "resize": (64, 96)},
    "deit_tiny_patch16_224": {"layers": ["blocks.2"], "resize": 64},
    "convnext_atto": {"resize": (64, 96)},
    "mobilenetv3_small_050": {"resize": (64, 96)},
}


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.filterwarnings("ignore")
def test_files_and_exports_agree_with_predict(name, good_images, scratched, tmp_path):
    options = {"pretrained": False, "regularization": "paper", "refit_below": 0, "n_features": 16}
    model = PaDiM(backbone=name, **FITTED[name], **options).fit(good_images)
    expected = model.predict(scratched)
    model.save(tmp_path / "part.flawmap")
    detectors = [load(tmp_path / "part.flawmap", runtime=runtime) for runtime in ("torch", "openvino")]
    detectors += [Inspector(export_model(model, tmp_path / kind, format=kind)) for kind in ("openvino", "onnx")]
    for detector in detectors:
        one, *_ = detector.predict([scratched, *good_images[:2]])
        assert one.pred_score == pytest.approx(expected.pred_score, rel=1e-3)
        np.testing.assert_allclose(one.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)
        assert (one.pred_label, one.p_value) == (expected.pred_label, expected.p_value)


def test_a_model_loads_with_its_weights_at_its_size(tiny_weights, good_images, scratched, tmp_path):
    options = {"backbone": "vit_tiny_patch16_224", "layers": ["blocks.0"], "weights": tiny_weights}
    for size in ((64, 96), (112, 80)):
        model = PaDiM(**options, resize=size, n_features=8).fit(good_images)
        model.save(tmp_path / "part.flawmap")
        loaded = load(tmp_path / "part.flawmap", weights=tiny_weights)
        assert loaded.shapes_ == [(192, (size[0] // 16, size[1] // 16))]
        assert loaded.predict(scratched).pred_score == pytest.approx(model.predict(scratched).pred_score, rel=1e-5)


def test_other_detectors_read_transformers_too(good_images, scratched):
    options = {"backbone": "vit_tiny_patch16_224", "pretrained": False, "resize": (64, 96)}
    for model in (MahalanobisAD(**options, layers=["blocks.0"]), SPADE(**options)):
        assert model.fit(good_images).predict(scratched).pred_score > 0
    assert model.backbone_.layers == ("blocks.8", "blocks.11")


def test_the_preset_is_one_block_of_dinov2(dino_weights, good_images, scratched, tmp_path):
    model = PaDiM.from_preset("padim-dinov2-s", weights=dino_weights, n_features=16, refit_below=0)
    assert model.preprocessing.input_size == (448, 448)
    model.fit(good_images[:4])
    assert (model.shapes_, model.backbone_.layers) == ([(384, (32, 32))], ("blocks.8",))
    model.save(tmp_path / "part.flawmap")
    loaded = load(tmp_path / "part.flawmap", weights=dino_weights)
    assert loaded.predict(scratched).pred_score == pytest.approx(model.predict(scratched).pred_score, rel=1e-4)
