from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from flawmap.errors import ParameterError, TrainingSetError
from flawmap.images import Preprocessing
from flawmap.images.alignment import AlignedPreprocessing, AlignmentRecord, Sample, learn_aligner, pictures
from flawmap.images.alignment.pose import Frame, inside, pose_matrix, resample
from flawmap.images.alignment.reference import Learnt, learn_reference
from flawmap.images.alignment.search import Reference
from flawmap.images.stream import stream
from turned import photo


def grey(image):
    return np.asarray(Image.fromarray(image).convert("L"), np.float32)


def turned(n, *, widest=180.0, size=(128, 128), seed=0, **options):
    """Photos, and the angle (degrees) and shift (y, x) of each."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-widest, widest, n)
    shifts = rng.uniform(-8, 8, (n, 2))
    images = [
        photo(size, angle=float(angle), shift=tuple(shift), seed=i, gain=float(rng.uniform(0.8, 1.1)), **options)
        for i, (angle, shift) in enumerate(zip(angles, shifts, strict=True))
    ]
    return images, angles, shifts


def sample(images, preprocessing):
    return Sample.of(list(stream(images, preprocessing, whole=True)), preprocessing)


def angle_of(pose):
    return math.degrees(math.atan2(pose[0, 1], pose[0, 0]))


def apart(one, other):
    return abs(math.remainder(one - other, 360))


def test_a_resampled_image_shows_what_the_affine_says():
    values = np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)
    moved = np.asarray(resample(Image.fromarray(values), np.array([[1, 0, 2.0], [0, 1, 3], [0, 0, 1]]), (8, 10)))
    assert moved == pytest.approx(values[2:10, 3:13], abs=1e-5)
    swapped = np.array([[0, 1, 0.0], [1, 0, 0], [0, 0, 1]])
    assert np.asarray(resample(Image.fromarray(values), swapped, (12, 12))) == pytest.approx(values[:, :12].T, abs=1e-5)
    assert inside(swapped, (20, 14), (0, 0, 12, 20))[:, 11].all()
    assert not inside(swapped, (20, 14), (0, 0, 12, 20))[:, 12].any()


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (100, 100)])
def test_a_frame_that_squashes_turns_as_the_photo_does(size):
    frame = Frame(size, (100.0, 100.0))
    right = frame.affine(pose_matrix(math.pi / 2)) @ np.array([0.5 * size[0], size[1], 1])
    assert right[:2] == pytest.approx([size[0], 0.5 * size[1]])


@pytest.mark.parametrize("angle", [-170.0, -93.0, -20.0, 0.0, 4.0, 61.0, 180.0])
def test_a_part_is_found_to_a_fraction_of_a_degree_and_pixel(angle):
    reference = Reference("rigid", grey(photo()), (1.0, 1.0))
    pose, match = reference.locate(grey(photo(angle=angle, shift=(5.3, -7.6), seed=1, gain=0.9)))
    assert match > 0.97
    assert apart(angle_of(pose), angle) < 0.3
    assert pose[:2, 2] * 128 == pytest.approx([5.3, -7.6], abs=0.3)


def test_a_part_of_another_size_is_found_by_similarity():
    reference = Reference("similarity", grey(photo()), (1.0, 1.0), scales=(0.7, 1.4))
    pose, match = reference.locate(grey(photo(angle=30, scale=1.17, shift=(2, 3), seed=1)))
    assert match > 0.97
    assert math.hypot(*pose[0, :2]) == pytest.approx(1.17, abs=0.01)


def test_a_reference_is_learnt_from_parts_that_lie_anyhow():
    images, angles, _ = turned(16)
    learnt = learn_reference([grey(image) for image in images], "rigid", (1.0, 1.0))
    found = np.array([angle_of(pose) for pose in learnt.poses])
    offsets = [math.remainder(one - other, 360) for one, other in zip(found, angles, strict=True)]
    spread = [apart(offset, offsets[0]) for offset in offsets]
    assert max(spread) < 1
    assert learnt.matches.min() > 0.95
    assert learnt.reference.angles == (-180, 180)


def test_parts_that_are_turned_little_keep_to_their_range():
    images, _, _ = turned(12, widest=10)
    learnt = learn_reference([grey(image) for image in images], "rigid", (1.0, 1.0))
    first, last = learnt.reference.angles
    assert -20 < first < -6
    assert 6 < last < 20
    assert np.mean([angle_of(pose) for pose in learnt.poses]) == pytest.approx(0, abs=1)


def test_auto_aligns_what_moves_and_leaves_the_rest(good_images):
    preprocessing = Preprocessing.of(128)
    assert learn_aligner(sample(turned(12)[0], preprocessing), "auto").reference.kind == "rigid"
    shifted = [photo(shift=(float(y), float(x)), seed=i) for i, (y, x) in enumerate(turned(12)[2])]
    assert learn_aligner(sample(shifted, preprocessing), "auto").reference.kind == "shift"
    still = [photo(seed=i) for i in range(12)]
    assert learn_aligner(sample(still, preprocessing), "auto") is None
    assert learn_aligner(sample(list(good_images), Preprocessing.of(64)), "auto") is None
    noise = list(np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8))
    assert learn_aligner(sample(noise, Preprocessing.of(64)), "auto") is None
    assert learn_aligner(sample(turned(12)[0], preprocessing), "none") is None


@pytest.mark.parametrize("aspect", ["squash", "letterbox"])
def test_aligned_images_agree_and_say_what_they_show(aspect):
    size = (120, 160)
    images, angles, _ = turned(12, size=size)
    plain = Preprocessing.of(128, aspect=aspect)
    aligned = AlignedPreprocessing.of_aligner(plain, learn_aligner(sample(images, plain), "rigid"))
    results = [aligned.apply(image) for image in images]
    pixels = np.stack([result[0] for result in results]).astype(np.float64)
    assert pixels.shape == (12, 128, 128, 4)
    assert set(np.unique(pixels[..., 3])) == {0, 255}
    middle = pixels[:, 44:84, 44:84, :3].mean(axis=3)
    apart_from_mean = np.corrcoef(middle.reshape(12, -1)).min()
    assert apart_from_mean > 0.9
    for (_, placement), angle in zip(results, angles, strict=True):
        assert placement.pose.found
        assert apart(placement.pose.angle - results[0][1].pose.angle, angle - angles[0]) < 1.5


def test_what_stands_in_is_as_bright_as_the_photo():
    images, _, _ = turned(12)
    plain = Preprocessing.of(128)
    aligner = learn_aligner(sample(images, plain), "rigid")
    to_the_left = np.array([[1, 0, 0], [0, 1, 64.0], [0, 0, 1]])
    dark, light = (
        aligner.move((images[0] * gain).astype(np.uint8), (0, 0, 128, 128), to_the_left) for gain in (0.6, 0.9)
    )
    shown = dark[..., 3] > 0
    assert not shown[:, 70:].any()
    change, change_beside = (light[part][:, :3].mean() - dark[part][:, :3].mean() for part in (~shown, shown))
    assert change_beside > 30
    assert change == pytest.approx(change_beside, abs=4)
    beyond = np.array([[1, 0, 900.0], [0, 1, 0], [0, 0, 1]])
    assert not aligner.move(images[0], (0, 0, 128, 128), beyond)[..., 3].any()


def test_a_map_goes_back_to_where_the_part_lies():
    images, _, _ = turned(12)
    plain = Preprocessing.of(64)
    aligned = AlignedPreprocessing.of_aligner(plain, learn_aligner(sample(images, plain), "rigid"))
    pixels, placement = aligned.apply(images[3])
    back = placement.to_original(pixels[..., 0].astype(np.float32), outside=-1)
    assert back.shape == (128, 128)
    seen = back >= 0
    assert seen.mean() > 0.7
    photo_values = np.asarray(Image.fromarray(images[3]).resize((64, 64), Image.Resampling.BOX).resize((128, 128)))
    inner = np.zeros_like(seen)
    inner[30:98, 30:98] = True
    assert np.corrcoef(back[seen & inner], photo_values[..., 0][seen & inner])[0, 1] > 0.95
    corner = np.array(placement.on_photo) @ np.array([32.0, 32.0, 1])
    assert np.abs(corner - 64).max() < 24
    straight = placement.straighten(pixels[..., 0].astype(np.float32))
    assert straight.shape == (64, 64)
    assert np.corrcoef(straight[16:48, 16:48].ravel(), photo_values[::2, ::2, 0][16:48, 16:48].ravel())[0, 1] > 0.9
    shown = placement.on((32, 32)).to_original(pixels[..., 0].astype(np.float32))
    assert shown.shape == (32, 32)


@pytest.mark.parametrize(
    "image",
    [
        np.full((128, 128, 3), 200, np.uint8),
        np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8),
        photo(angle=30, scale=2.5),
        photo(angle=30, mirrored=True),
        photo(angle=20, shift=(80, 80)),
        np.minimum(photo(angle=0, shift=(-40, 0), scale=0.6), photo(angle=90, shift=(40, 0), scale=0.6)),
    ],
    ids=["blank", "noise", "much larger", "mirrored", "half outside", "two parts"],
)
def test_what_is_no_such_part_is_not_found(image):
    images, _, _ = turned(24)
    plain = Preprocessing.of(128)
    aligned = AlignedPreprocessing.of_aligner(plain, learn_aligner(sample(images, plain), "rigid"))
    assert not aligned.apply(image)[1].pose.found
    assert aligned.apply(photo(angle=77, seed=99))[1].pose.found


def test_one_good_image_aligns_nothing_and_two_do():
    plain = Preprocessing.of(64)
    assert learn_aligner(sample(turned(1)[0], plain), "rigid") is None
    aligner = learn_aligner(sample(turned(2)[0], plain), "rigid")
    assert AlignedPreprocessing.of_aligner(plain, aligner).apply(photo(angle=10))[1].pose.match > 0.8


def test_a_record_restores_an_aligner():
    images, _, _ = turned(6)
    plain = Preprocessing.of(64)
    aligner = learn_aligner(sample(images, plain), "rigid")
    record = AlignmentRecord.model_validate_json(AlignmentRecord.of(aligner).model_dump_json())
    kept = pictures(aligner)
    assert {name: picture.shape for name, picture in kept.items()} == record.shapes
    again = record.restore(*kept.values(), plain.resize)
    for image in images:
        ours, theirs = (AlignedPreprocessing.of_aligner(plain, one).apply(image) for one in (aligner, again))
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_a_part_that_is_half_outside_is_not_found(angle):
    plain = Preprocessing.of(64)
    aligner = learn_aligner(sample(turned(24)[0], plain), "rigid")
    aligned = AlignedPreprocessing.of_aligner(plain, aligner)
    assert 0.9 < aligner.least_shown <= 0.95
    assert aligned.apply(photo(angle=angle, shift=(0, 20), seed=5))[1].pose.found
    assert not aligned.apply(photo(angle=angle, shift=(0, 64), seed=5))[1].pose.found


def test_parts_that_good_images_cut_off_are_found_as_far_as_theirs():
    plain = Preprocessing.of(64)
    images = [photo(angle=float(a), shift=(0, 50), seed=i) for i, a in enumerate(np.linspace(160, 200, 24))]
    aligner = learn_aligner(sample(images, plain), "rigid")
    aligned = AlignedPreprocessing.of_aligner(plain, aligner)
    assert aligned.apply(photo(angle=180, shift=(0, 50), seed=99))[1].pose.found
    assert not aligned.apply(photo(angle=180, shift=(0, 86), seed=99))[1].pose.found


def test_equal_good_images_do_not_make_a_defect_a_lost_part():
    plain = Preprocessing.of(64)
    aligner = learn_aligner(sample([photo(seed=1)] * 20, plain), "rigid")
    assert aligner.least_match == 0.95
    pose = AlignedPreprocessing.of_aligner(plain, aligner).apply(photo(seed=2, noise=4, scratched=True))[1].pose
    assert pose.match < 0.998
    assert pose.found


@pytest.mark.parametrize("kind", ["shift", "rigid", "similarity"])
def test_images_without_a_part_in_common_are_refused(kind):
    plain = Preprocessing.of(64)
    noise = list(np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8))
    for images in (noise, [np.full((64, 64, 3), 100, np.uint8)] * 12):
        with pytest.raises(TrainingSetError, match=r"no part that the good images have in common: .*align='none'"):
            learn_aligner(sample(images, plain), kind)
        assert learn_aligner(sample(images, plain), "auto") is None


RECORD = {
    "kind": "similarity", "size": (64, 64), "proportions": (1, 1), "angles": (-180, 180), "scales": (0.7, 1.4),
    "least_match": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "claim",
    [
        {"angles": (10, -10)},
        {"angles": (-360, 360)},
        {"scales": (1.4, 0.7)},
        {"scales": (0.25, 4)},
        {"scales": (0, 1)},
        {"proportions": (1e-9, 1e6)},
        {"proportions": (0, 1)},
        {"least_match": float("nan")},
        {"least_shown": 1.5},
        {"kind": "affine"},
        {"size": (4096, 4096)},
        {"further": 1},
    ],
)
def test_a_record_that_no_fit_gives_is_refused(claim):
    assert AlignmentRecord(**RECORD).least_shown == 0
    with pytest.raises(ValidationError):
        AlignmentRecord(**{**RECORD, **claim})


@pytest.mark.parametrize(
    ("size", "value"), [((64, 64), 300), ((64, 64), -1), ((64, 64), float("nan")), ((128, 128), 9), ((64, 96), 9)]
)
def test_pictures_that_no_fit_gives_are_refused(size, value):
    record = AlignmentRecord(**RECORD)
    with pytest.raises(ParameterError, match="the alignment's pictures"):
        record.restore(np.full((64, 64), value, np.float32), np.zeros((64, 64, 3), np.float32), size)


@pytest.mark.parametrize(("worst", "taken"), [(0.4, False), (0.7, False), (0.95, True)])
def test_auto_takes_what_helps_the_worst_images_too(monkeypatch, worst, taken):
    images = turned(20)[0]
    plain = Preprocessing.of(64)
    unaligned = np.array([0.72] * 4 + [0.9] * 16)  # as cells of ELPV, for which similarity gave 0.4 and 0.944

    def learn(greys, kind, proportions):
        matches = np.array([worst] * 4 + [0.95] * 16)
        return Learnt(Reference(kind, greys[0], proportions), [np.eye(3)] * 20, matches)

    monkeypatch.setattr("flawmap.images.alignment.choice.match_unaligned", lambda _: unaligned)
    monkeypatch.setattr("flawmap.images.alignment.choice.learn_reference", learn)
    assert (learn_aligner(sample(images, plain), "auto") is not None) == taken
