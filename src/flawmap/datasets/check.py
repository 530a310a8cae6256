"""Whether a data set on disk is whole: its counts beside the published ones, and every file that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from flawmap.datasets.catalogue import find_layout
from flawmap.datasets.dataset import Dataset, Sample, subfolders
from flawmap.datasets.layout import Counts, Layout
from flawmap.errors import DatasetError, ImageError
from flawmap.images.masks import ClassMask, MaskFrame, MaskSource, read_mask
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.source import SUFFIXES, find_images
from flawmap.images.stream import stream
from flawmap.prediction import Size

__all__ = ["ClassReport", "Problem", "Report", "check_dataset"]

SIDE_FILES = frozenset({".txt", ".md", ".csv", ".m", ".json", ".html", ".pdf", ".db", ".ini"})
"""Licences, tables and what file managers leave behind: nothing to speak of."""
MASK_FOLDERS = frozenset({"ground_truth", "masks", "test_pixel_mask", "test_frame_mask"})
FIGURES = {
    "train": "training images",
    "test": "test images",
    "good": "good test images",
    "anomalous": "anomalous test images",
    "train_groups": "training clips",
    "test_groups": "test clips",
}


ALIKE = 0.7
"""How alike two names are that may be meant to be one, from 0 to 1."""


@dataclass(frozen=True)
class Problem:
    """A file or folder, and what is the matter with it."""

    path: str
    reason: str


@dataclass(frozen=True)
class ClassReport:
    """What was found of one class.

    Attributes:
        name: its name. path: where it lies.
        found: how many images there are. published: how many there should be, where that is known.
        problems: what is broken. notes: what is odd, but does no harm.
    """

    name: str
    path: str
    found: Counts
    published: Counts | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found of a data set; `problems` and `notes` are those of the whole, beside those of its classes."""

    layout: str
    path: str
    classes: tuple[ClassReport, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems and not any(part.problems for part in self.classes)

    def to_json(self) -> dict[str, object]:
        """One plain object."""
        return {"is_whole": self.is_whole, **asdict(self)}


def check_dataset(where: str, *, decode: bool = True, advance: Callable[[int], None] = lambda _: None) -> Report:
    """Check the data set meant by a path or NAME:PATH, one class of it or all.

    Args:
        where: as for `open_dataset`; the root of several classes is checked whole.
        decode: read every image and mask, so that damaged ones and masks of another size are found; False goes by the
            names of files alone.
        advance: is called with the number of images just read.
    """
    layout, path = find_layout(where)
    classes = layout.find_classes(path)
    # a folder of a published name is meant to be a class, however little of its layout is there
    broken = [folder for folder in _neighbours(classes) if folder.name in layout.classes]
    paths = sorted({*classes, *broken}) or [path]
    reports = tuple(_check_class(layout, path, decode, advance) for path in paths)
    problems: list[Problem] = []
    notes: list[Problem] = []
    if classes and layout.classes:
        missing = sorted(set(layout.classes) - {path.name for path in paths})
        if missing:
            notes.append(Problem(str(path), f"classes that are not here: {', '.join(missing)}"))
        if (whole := layout.published.get("")) is not None:
            _compare(layout, str(path), _total([report.found for report in reports]), whole, problems, notes)
        _check_names(layout, classes, missing, problems, notes)
    return Report(layout.name, where, reports, tuple(problems), tuple(notes))


def _neighbours(classes: list[Path]) -> list[Path]:
    """Folders beside the classes, themselves among them; none where classes have no folders of their own."""
    return subfolders(classes[0].parent) if any(path.is_dir() for path in classes) else []


def _check_names(
    layout: Layout, classes: list[Path], missing: list[str], problems: list[Problem], notes: list[Problem]
) -> None:
    """Folders beside the classes whose name is misspelt, and those with images that are read as no class."""
    by_key = {_key(name): name for name in missing}
    for folder in _neighbours(classes):
        if folder.name in layout.classes:
            continue
        if near := get_close_matches(_key(folder.name), by_key, n=1, cutoff=ALIKE):
            name = by_key[near[0]]
            problems.append(Problem(str(folder), f"is no class of {layout.title}; if it is {name}, rename it"))
        elif folder not in classes and find_images(folder):
            notes.append(Problem(str(folder), f"is not laid out as a class of {layout.title}, and was passed over"))


def _key(name: str) -> str:
    """What is left of a name that is easily written otherwise."""
    return name.lower().lstrip("0")


def _check_class(layout: Layout, path: Path, decode: bool, advance: Callable[[int], None]) -> ClassReport:
    problems: list[Problem] = []
    notes: list[Problem] = []
    published = layout.published.get(path.name if layout.classes else "")
    try:
        data = layout.read(path, lambda file, reason: problems.append(Problem(str(file), reason)))
    except (DatasetError, ImageError) as error:
        problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
        return ClassReport(path.name, str(path), Counts(0, 0, 0, 0, 0, 0), published, tuple(problems))
    found = Counts.of(data)
    if published is not None:
        _compare(layout, str(path), found, published, problems, notes)
    if not data.train:
        problems.append(Problem(str(path), "has no training images"))
    if not data.test:  # where numbers are published of the whole alone, as of scenes, one may rightly have none
        (notes if layout.classes and "" in layout.published else problems).append(
            Problem(str(path), "has no test images")
        )
    _check_masks_exist(layout, path, data, problems, notes)
    if decode:
        sizes = _read_all(data, problems, advance)
        _check_sizes(data, sizes, problems)
        _check_masks(data, sizes, problems, notes)
        layout.contradictions(path, lambda file, reason: problems.append(Problem(str(file), reason)))
    told = {problem.path for problem in problems}
    for file, reason, is_problem in _strays(layout, path, data):
        if str(file) not in told:
            (problems if is_problem else notes).append(Problem(str(file), reason))
    unique = tuple(dict.fromkeys(problems))  # two steps may meet the same broken file
    return ClassReport(path.name or data.name, str(path), found, published, unique, tuple(notes))


def _compare(
    layout: Layout, path: str, found: Counts, published: Counts, problems: list[Problem], notes: list[Problem]
) -> None:
    for figure in fields(Counts):
        expected, got = getattr(published, figure.name), getattr(found, figure.name)
        if expected is not None and got != expected:
            is_exact = layout.counts_frames or figure.name.endswith("groups")
            reason = f"{got} {FIGURES[figure.name]}, published are {expected}"
            (problems if is_exact else notes).append(Problem(path, reason))


def _total(parts: list[Counts]) -> Counts:
    return Counts(*(sum(getattr(part, figure.name) or 0 for part in parts) for figure in fields(Counts)))


def _check_masks_exist(
    layout: Layout, path: Path, data: Dataset, problems: list[Problem], notes: list[Problem]
) -> None:
    anomalous = [sample for sample in data.test if sample.is_anomalous]
    bare = [sample for sample in anomalous if sample.mask_path is None]
    if layout.has_masks:
        problems += [Problem(str(sample.path), f"is {sample.type}, but has no mask") for sample in bare]
    elif 0 < len(bare) < len(anomalous):
        notes.append(Problem(str(path), f"{len(bare)} of {len(anomalous)} anomalous images have no mask"))


def _read_all(data: Dataset, problems: list[Problem], advance: Callable[[int], None]) -> dict[str, Size]:
    """Size of each image that can be read."""

    def tell(error: ImageError) -> None:
        problems.append(Problem(error.name, error.reason))
        advance(1)

    sizes = {}
    items = [*data.train, *(sample.path for sample in data.test)]
    for image in stream(items, Preprocessing.of(8), on_bad=tell):
        sizes[image.name] = image.placement.image_size
        advance(1)
    return sizes


def _check_sizes(data: Dataset, sizes: dict[str, Size], problems: list[Problem]) -> None:
    """Frames of one camera have one size; the first of another is named for each clip."""
    groups = {str(item): group for item, group in zip(data.train, data.train_groups, strict=False)}
    groups |= {str(sample.path): sample.group for sample in data.test}
    of_clips = {name: size for name, size in sizes.items() if groups.get(name) is not None}
    if not of_clips:
        return
    usual = Counter(of_clips.values()).most_common(1)[0][0]
    told: set[str | None] = set()
    for name, size in of_clips.items():
        if size != usual and groups[name] not in told:
            told.add(groups[name])
            problems.append(Problem(name, f"is {size[0]} x {size[1]}, other clips are {usual[0]} x {usual[1]}"))


def _check_masks(data: Dataset, sizes: dict[str, Size], problems: list[Problem], notes: list[Problem]) -> None:
    """Masks that cannot be read, are of another size than their image, or mark nothing."""
    empty: dict[str, int] = {}
    for sample in data.test:
        if sample.mask_path is None:
            continue
        try:
            mask = read_mask(sample.mask_path)
        except ImageError as error:
            problems.append(Problem(error.name, error.reason))
            continue
        size = sizes.get(str(sample.path), mask.shape)
        if mask.shape != size:
            problems.append(Problem(str(sample.mask_path), _other_size(mask.shape, size, sample)))
        elif not mask.any():
            file = str(_file(sample.mask_path))
            empty[file] = empty.get(file, 0) + 1
    notes += [Problem(file, f"marks nothing, in {n} images that are labelled anomalous") for file, n in empty.items()]


def _other_size(mask: tuple[int, ...], image: tuple[int, ...], sample: Sample) -> str:
    return f"is {mask[0]} x {mask[1]}, its image {sample.path} is {image[0]} x {image[1]}"


def _strays(layout: Layout, path: Path, data: Dataset) -> Iterator[tuple[Path, str, bool]]:
    """Files that no image or mask accounts for, why they are odd, and whether that is a problem."""
    used = {item if isinstance(item, Path) else item.path for item in data.train}
    used |= {sample.path for sample in data.test}
    used |= {_file(sample.mask_path) for sample in data.test if sample.mask_path is not None}
    # a clip's labels and masks are in use even where none of its frames is anomalous
    clips = {sample.group for sample in data.test}
    good_folders = {"good", "ok", "normal", "MT_Free"}
    for file in layout.files(path):
        parts = file.relative_to(path.parent).parts if file.is_relative_to(path.parent) else file.parts
        suffix = file.suffix.lower()
        if file in used or file.name.startswith(".") or suffix in SIDE_FILES or "__MACOSX" in parts:
            continue
        is_mask = _is_mask(layout, parts, suffix)
        if is_mask and (good_folders & set(parts) or clips & {file.stem, file.parent.name.removesuffix("_gt")}):
            continue
        if is_mask:
            yield file, "is a mask without an image", True
        elif suffix in SUFFIXES or suffix == ".avi":
            yield file, "belongs to neither training nor test images", True
        else:
            yield file, "is neither an image nor a mask", False


def _is_mask(layout: Layout, parts: tuple[str, ...], suffix: str) -> bool:
    if layout.name == "mtd":
        return suffix == ".png"
    return any(part.lower() in MASK_FOLDERS or part.endswith("_gt") for part in parts)


def _file(mask: MaskSource) -> Path:
    return mask.path if isinstance(mask, (MaskFrame, ClassMask)) else Path(mask)
