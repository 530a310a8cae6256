from __future__ import annotations

import copy
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from flawmap import PaDiM
from flawmap.datasets import open_dataset
from flawmap.decision import Decision
from flawmap.errors import DatasetError
from flawmap.evaluation import Figures, evaluate, evaluate_classes, mean_figures
from flawmap.evaluation.figures import promising_threshold
from flawmap.images import read_mask

SIZE = (64, 64)


def detector():
    return PaDiM(backbone="resnet10t", pretrained=False, resize=64, calibrate=None)


@pytest.fixture(scope="module")
def campus(tmp_path_factory, good_images, scratched):
    """Two scenes of ShanghaiTech Campus with a test clip each, the second with half as strong a defect; 13 has none."""
    root = tmp_path_factory.mktemp("campus")
    (root / "training" / "videos").mkdir(parents=True)
    for folder in ("test_pixel_mask", "test_frame_mask"):
        (root / "testing" / folder).mkdir(parents=True)
    for scene, strength in (("01", 1.0), ("02", 0.05), ("13", None)):
        path = root / "training" / "videos" / f"{scene}_001.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, SIZE)
        for image in good_images:
            writer.write(image[..., ::-1])
        writer.release()
        if strength is None:
            continue
        clip = root / "testing" / "frames" / f"{scene}_0001"
        clip.mkdir(parents=True)
        masks = np.zeros((6, *SIZE), np.uint8)
        masks[2:5, 24:40, 38:43] = 1
        for i in range(6):
            mixed = good_images[i] + strength * (scratched.astype(float) - good_images[0]) * masks[i, ..., None]
            Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)).save(clip / f"{i:03}.jpg", quality=95)
        np.save(root / "testing" / "test_pixel_mask" / f"{clip.name}.npy", masks)
        np.save(root / "testing" / "test_frame_mask" / f"{clip.name}.npy", masks.any(axis=(1, 2)))
    return root


def test_each_scene_has_its_model_and_the_mean_is_over_scenes(campus):
    result = evaluate_classes(f"stc:{campus}", detector)
    assert set(result.by_class) == {"01", "02"}
    for scene, figures in result.by_class.items():
        data = open_dataset(f"stc:{campus}/{scene}")
        predictions = detector().fit(data).predict([sample.path for sample in data.test])
        labels = [sample.is_anomalous for sample in data.test]
        truth = [read_mask(s.mask_path) if s.mask_path else np.zeros(SIZE, bool) for s in data.test]
        maps = np.stack([prediction.anomaly_map for prediction in predictions])
        assert figures.image_auroc == pytest.approx(roc_auc_score(labels, [p.pred_score for p in predictions]))
        assert figures.pixel_auroc == pytest.approx(roc_auc_score(np.ravel(truth), maps.ravel()), abs=1e-6)
    first, second = result.by_class["01"], result.by_class["02"]
    assert first.pixel_auroc != second.pixel_auroc
    assert result.mean.pixel_auroc == pytest.approx((first.pixel_auroc + second.pixel_auroc) / 2)
    assert result.mean.image_auroc == pytest.approx((first.image_auroc + second.image_auroc) / 2)
    assert result.mean.n_images == 12


def test_some_scenes_at_a_stride(campus):
    result = evaluate_classes(campus, detector, classes=["02"], stride=2)
    assert list(result.by_class) == ["02"]
    assert result.mean.n_images == 3
    assert result.to_json()["mean"]["n_images"] == 3


def test_files_that_are_passed_over_are_told(campus):
    stray = campus / "testing" / "frames" / "02_0001" / "notes.docx"
    stray.write_text("x")
    try:
        result = evaluate_classes(campus, detector, classes=["02"])
    finally:
        stray.unlink()
    assert "1 file passed over: 1 .docx" in result.by_class["02"].warnings


def test_unknown_scenes_and_scenes_without_tests_are_said(campus):
    with pytest.raises(DatasetError, match="has no class 07"):
        evaluate_classes(campus, detector, classes=["01", "07"])
    with pytest.raises(DatasetError, match="no class"):
        evaluate_classes(campus, detector, classes=["13"])


def with_scores(scores):
    """A Decision of held-out scores."""
    return Decision(np.asarray(scores, np.float32), np.zeros(0, np.float32))


def test_the_threshold_of_5_per_cent_needs_scores_that_can_promise_it():
    assert promising_threshold(None) is None
    assert promising_threshold(with_scores(range(18))) is None
    assert promising_threshold(with_scores(range(19))) == 18
    assert promising_threshold(with_scores(range(39)).at_value(3)) == 37
    pairs = replace(with_scores(range(36)), group_sizes=np.full(36, 2, np.float32))
    assert promising_threshold(pairs) is None


def test_what_is_found_and_flagged_at_5_per_cent_are_counts_by_hand(small_model, good_images, scratched, tmp_path):
    """By twelve good images repeated with noise: held-out scores that can promise 5 %."""
    model = copy.copy(small_model)
    model.decision_ = with_scores(np.tile(small_model.leave_one_out_scores_, 2))
    faint = good_images[1] + 0.05 * (scratched.astype(float) - good_images[0])
    pictures = {"good/0": good_images[2], "good/1": scratched[::-1], "cut/0": scratched, "cut/1": good_images[3]}
    pictures |= {"spot/0": np.clip(faint, 0, 255).astype(np.uint8)}
    for name, picture in pictures.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / f"{name}.png")
    samples = open_dataset(tmp_path).test
    result = evaluate(model, samples)
    threshold = model.decision_.at_rate(0.05).threshold
    above = {str(s.path): model.predict(s.path).pred_score > threshold for s in samples}
    for name, figures in {**result.by_type, "": result}.items():
        own = [above[str(s.path)] for s in samples if s.is_anomalous and s.type.startswith(name)]
        assert figures.found_at_5 == np.mean(own)
        assert figures.flagged_at_5 == 0.5
    assert result.by_type["cut"].found_at_5 == 0.5
    assert result.miss_rate is not None
    assert result.to_json()["by_type"]["cut"]["found_at_5"] == 0.5
    assert evaluate(small_model, samples).found_at_5 is None  # of twelve


def test_a_figure_that_is_not_defined_somewhere_is_left_out_of_its_mean():
    mean = mean_figures({"a": Figures(3, 0.5, None, None), "b": Figures(4, 1.0, 0.8, None)})
    assert mean == Figures(7, 0.75, 0.8, None)
    at_5 = [Figures(3, 0.5, None, None, found_at_5=x, flagged_at_5=0.1) for x in (0.5, None, 1.0)]
    mean = mean_figures(dict(zip("abc", at_5, strict=True)))
    assert (mean.found_at_5, mean.flagged_at_5) == (0.75, pytest.approx(0.1))
