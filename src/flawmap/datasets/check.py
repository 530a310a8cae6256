"""Check of a data set on disk: its counts beside the published ones, and every file that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

from flawmap.datasets.catalogue import find_layout
from flawmap.datasets.copies import find_copies
from flawmap.datasets.dataset import GOOD_NAMES, Dataset, file_of, subfolders
from flawmap.datasets.layout import Counts, Layout, files_used, inner_parts, is_mask
from flawmap.datasets.mask_files import FOLDERS, image_names
from flawmap.errors import DatasetError, ImageError, counted
from flawmap.images.formats import OTHER_SUFFIXES, RAW_SUFFIXES, VIDEO_SUFFIXES, is_image
from flawmap.images.masks import inspect_mask
from flawmap.images.pages import ImagePage, first_page, page_numbers
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.search import find_images
from flawmap.images.source import collect
from flawmap.images.stream import stream
from flawmap.prediction import Size

SIDE_FILES = frozenset({".txt", ".md", ".csv", ".m", ".json", ".html", ".pdf", ".db", ".ini"})
"""Licences, tables and files of file managers, which are ignored in a class's own folder."""
GOOD_FOLDERS = GOOD_NAMES | {"mt_free"}
FIGURES = {
    "train": "training images",
    "test": "test images",
    "good": "good test images",
    "anomalous": "anomalous test images",
    "train_groups": "training clips",
    "test_groups": "test clips",
}
ALIKE = 0.7
"""Similarity, from 0 to 1, from which a folder's name is a misspelt class."""


@dataclass(frozen=True)
class Problem:
    """A file or folder, and what is wrong with it.

    Example:
        >>> Problem("screw/test/good/000.png", "is empty").reason
        'is empty'
    """

    path: str
    reason: str


@dataclass(frozen=True)
class ClassReport:
    """Findings about one class.

    Attributes:
        name: its name.
        path: its folder.
        found: numbers of its images.
        published: the published numbers, or None.
        problems: what is wrong.
        notes: what is unusual, but harmless.

    Example:
        >>> part = ClassReport("screw", "screw", Counts(train=8), Counts(train=320))
        >>> part.found.train, part.published.train
        (8, 320)
    """

    name: str
    path: str
    found: Counts
    published: Counts | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Report:
    """Findings about a data set; `problems` and `notes` are those of the whole, beside those of its classes.

    Example:
        >>> Report("mvtec_ad", "screw", (), problems=(Problem("screw", "has no test images"),)).is_whole
        False
    """

    layout: str
    path: str
    classes: tuple[ClassReport, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether there are no problems."""
        return not self.problems and not any(part.problems for part in self.classes)

    def to_json(self) -> dict[str, object]:
        """One plain object."""
        return {"is_whole": self.is_whole, **asdict(self)}


@dataclass
class _Findings:
    """Problems and notes in order, each once: two steps may find the same file."""

    problems: dict[Problem, None] = field(default_factory=dict)
    notes: dict[Problem, None] = field(default_factory=dict)

    def problem(self, path: Path | str, reason: str) -> None:
        """Add what is wrong with a file or folder."""
        self.problems[Problem(str(path), reason)] = None

    def note(self, path: Path | str, reason: str) -> None:
        """Add what is only unusual about it."""
        self.notes[Problem(str(path), reason)] = None

    def compare(self, layout: Layout, path: Path, found: Counts, published: Counts) -> None:
        """Add each count that differs from the published one."""
        for figure in fields(Counts):
            expected, got = getattr(published, figure.name), getattr(found, figure.name)
            if expected is not None and got != expected:
                is_exact = layout.counts_frames or figure.name.endswith("groups")
                add = self.problem if is_exact else self.note
                add(path, f"{got} {FIGURES[figure.name]}, published are {expected}")


def check_dataset(where: str, *, decode: bool = True, advance: Callable[[int], None] = lambda _: None) -> Report:
    """Check the data set at a path or NAME:PATH, one class of it or all.

    Args:
        where: as for `open_dataset`; of the root of several classes all are checked.
        decode: read every image and mask, to find damaged ones and masks of another size; False checks names alone.
        advance: called with the number of images just read.
    """
    layout, path = find_layout(where)
    classes = layout.find_classes(path)
    # a folder of a published name is a class, even if most of its layout is missing
    broken = [folder for folder in _neighbours(classes) if folder.name in layout.classes]
    paths = sorted({*classes, *broken}) or [path]
    reports = tuple(_check_class(layout, path, decode, advance) for path in paths)
    findings = _Findings()
    if classes and layout.classes:
        missing = sorted(set(layout.classes) - {path.name for path in paths})
        if missing:
            findings.note(path, f"classes that are not here: {', '.join(missing)}")
        if (whole := layout.published.get("")) is not None:
            findings.compare(layout, path, _total([report.found for report in reports]), whole)
        _check_names(layout, classes, missing, findings)
    return Report(layout.name, where, reports, tuple(findings.problems), tuple(findings.notes))


def _neighbours(classes: list[Path]) -> list[Path]:
    """Folders beside the classes, the classes included; none if classes have no folders of their own."""
    return subfolders(classes[0].parent) if any(path.is_dir() for path in classes) else []


def _check_names(layout: Layout, classes: list[Path], missing: list[str], findings: _Findings) -> None:
    """Folders beside the classes whose name is misspelt, and those whose images belong to no class."""
    by_key = {_key(name): name for name in missing}
    for folder in _neighbours(classes):
        if folder.name in layout.classes:
            continue
        if near := get_close_matches(_key(folder.name), by_key, n=1, cutoff=ALIKE):
            findings.problem(folder, f"is no class of {layout.title}; if it is {by_key[near[0]]}, rename it")
        elif folder not in classes and find_images(folder):
            findings.note(folder, f"has not the layout of a class of {layout.title}, and is ignored")


def _key(name: str) -> str:
    """A name without what is often written differently."""
    return name.lower().lstrip("0")


def _check_class(layout: Layout, path: Path, decode: bool, advance: Callable[[int], None]) -> ClassReport:
    findings = _Findings()
    published = layout.published.get(path.name if layout.classes else "")
    try:
        data = layout.read(path, findings.problem)
    except (DatasetError, ImageError) as error:
        findings.problem(path, str(error).removeprefix(f"{path}: "))
        return ClassReport(path.name, str(path), Counts(0, 0, 0, 0, 0, 0), published, tuple(findings.problems))
    found = Counts.of(data)
    for remark in data.remarks:
        findings.note(path, remark)
    if published is not None:
        findings.compare(layout, path, found, published)
    if not data.train:
        findings.problem(path, "has no training images")
    if not data.test:  # where numbers are published for the whole alone, as for scenes, a class may have none
        (findings.note if layout.classes and "" in layout.published else findings.problem)(path, "has no test images")
    _check_masks_exist(layout, path, data, findings)
    if decode:
        sizes = _read_all(data, findings, advance)
        _check_sizes(data, sizes, findings)
        _check_masks(data, sizes, findings)
        _check_copies(data, findings)
        layout.contradictions(path, findings.problem)
    of_good = _check_strays(layout, path, data, findings)
    if decode:
        _check_masks_of_good(of_good, findings)
    results = tuple(findings.problems), tuple(findings.notes)
    return ClassReport(path.name or data.name, str(path), found, published, *results)


def _total(parts: list[Counts]) -> Counts:
    return Counts(*(sum(getattr(part, figure.name) or 0 for part in parts) for figure in fields(Counts)))


def _check_masks_exist(layout: Layout, path: Path, data: Dataset, findings: _Findings) -> None:
    anomalous = [sample for sample in data.test if sample.is_anomalous]
    bare = [sample for sample in anomalous if sample.mask_path is None]
    if layout.has_masks:
        for sample in bare:
            findings.problem(sample.path, f"is {sample.type}, but has no mask")
    elif 0 < len(bare) < len(anomalous):
        findings.note(path, f"{len(bare)} of {len(anomalous)} anomalous images have no mask")


def _read_all(data: Dataset, findings: _Findings, advance: Callable[[int], None]) -> dict[str, Size]:
    """Size of each image that can be read."""

    def report(error: ImageError) -> None:
        findings.problem(error.name, error.reason)
        advance(1)

    sizes = {}
    items = [*collect(data.train, warn=False).items, *(first_page(sample.path) for sample in data.test)]
    for image in stream(items, Preprocessing.of(8), on_bad=report):
        name = image.name
        if isinstance(image.source, ImagePage):
            name = str(image.source.path)
            for remark in image.source.remarks:
                findings.note(name, remark)
        sizes[name] = image.placement.image_size
        advance(1)
    return sizes


def _check_sizes(data: Dataset, sizes: dict[str, Size], findings: _Findings) -> None:
    """Frames of one camera have one size; of each clip the first frame of another size is named."""
    groups = {str(item): group for item, group in zip(data.train, data.train_groups, strict=False)}
    groups |= {str(sample.path): sample.group for sample in data.test}
    of_clips = {name: size for name, size in sizes.items() if groups.get(name) is not None}
    if not of_clips:
        return
    usual = Counter(of_clips.values()).most_common(1)[0][0]
    named: set[str | None] = set()
    for name, size in of_clips.items():
        if size != usual and groups[name] not in named:
            named.add(groups[name])
            findings.problem(name, f"is {size[0]} x {size[1]}, other clips are {usual[0]} x {usual[1]}")


def _check_masks(data: Dataset, sizes: dict[str, Size], findings: _Findings) -> None:
    """Masks that cannot be read, have another size than their image, mark nothing, or are those of two images."""
    empty: Counter[Path] = Counter()
    owners: dict[str, Path] = {}
    unusual: dict[str, list[str]] = {}
    for sample in data.test:
        if sample.mask_path is None:
            continue
        if (owner := owners.setdefault(str(sample.mask_path), sample.path)) != sample.path:
            findings.note(str(sample.mask_path), f"is the mask of two images, {owner} and {sample.path}")
        try:
            found = inspect_mask(sample.mask_path)
        except ImageError as error:
            findings.problem(error.name, error.reason)
            continue
        mask = found.marked
        if found.remark is not None:
            unusual.setdefault(found.remark, []).append(str(sample.mask_path))
        if isinstance(sample.mask_path, Path) and (n_pages := len(page_numbers(sample.mask_path))) > 1:
            findings.note(sample.mask_path, f"has {n_pages} pages; the first is the mask")
        (height, width), own = sizes.get(str(sample.path), mask.shape), mask.shape
        if own != (height, width):
            reason = f"is {own[0]} x {own[1]}, its image {sample.path} is {height} x {width}"
            findings.problem(str(sample.mask_path), reason)
        elif not mask.any():
            empty[file_of(sample.mask_path)] += 1
    for file, n in empty.items():
        findings.note(file, f"marks nothing, in {counted(n, 'image')} labelled anomalous")
    for remark, names in unusual.items():
        findings.note(names[0], remark if len(names) == 1 else f"{remark}; the same of {len(names) - 1} more")


def _check_copies(data: Dataset, findings: _Findings) -> None:
    """Equal files with contradicting labels, and test images that are also training images."""
    for copy in find_copies(data):
        add = findings.problem if copy.contradicts else findings.note
        add(copy.path, f"is the same file as {copy.first}, which is {copy.first_label}; this one is {copy.label}")


def _check_strays(layout: Layout, path: Path, data: Dataset, findings: _Findings) -> list[Path]:
    """Files that belong to no image or mask, without those that are reported already; gives masks of good images."""
    of_good = []
    used = files_used(data) | {Path(problem.path) for problem in findings.problems}
    # a clip's labels and masks are in use even if none of its frames is anomalous
    clips = {sample.group for sample in data.test}
    good = {sample.path.stem.lower() for sample in data.test if not sample.is_anomalous}
    for file in layout.files(path):
        suffix = file.suffix.lower()
        if file in used or (file.parent == path and suffix in SIDE_FILES):
            continue
        if is_mask(layout, path, file):
            named_as_good = file.parent.name.lower() in FOLDERS and not good.isdisjoint(image_names(file))
            if suffix in SIDE_FILES:
                continue
            if named_as_good or GOOD_FOLDERS & {part.lower() for part in inner_parts(path, file)}:
                of_good.append(file)
            elif not clips & {file.stem, file.parent.name.removesuffix("_gt")}:
                findings.problem(file, "is a mask without an image")
        elif is_image(file) or suffix in VIDEO_SUFFIXES:
            findings.problem(file, "belongs to neither training nor test images")
        elif suffix in RAW_SUFFIXES | OTHER_SUFFIXES:
            findings.note(file, "is in a format that cannot be read; convert it to PNG or TIFF")
        else:
            findings.note(file, "is neither an image nor a mask")
    return of_good


def _check_masks_of_good(files: list[Path], findings: _Findings) -> None:
    """Masks of good images that mark something."""
    for file in files:
        try:
            if inspect_mask(file).marked.any():
                findings.note(file, "marks something, but its image is good")
        except ImageError as error:
            findings.note(error.name, error.reason)
