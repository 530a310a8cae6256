"""Every error flawmap raises on purpose, drawn as one tree.

FlawmapError
├── ImageError            one image cannot be used (carries its name)
├── DatasetError          a folder, glob or data set holds no usable images
├── TrainingSetError      the good images cannot be learnt from (too few, of other sizes, not finite)
├── TrainingError         a network's training broke down, or its checkpoint cannot be written or belongs to another
├── BackboneError         an unknown network or layer, or a network that cannot take the input size
│   └── WeightsError      pretrained weights are missing, partial or of another network
├── ModelFileError        a model file is missing, cut short, hostile, too new or cannot be written
├── NotFittedError        a detector is asked for results before `fit` or `load`
├── ParameterError        a parameter has a value it cannot have (also a ValueError)
└── MissingDependencyError  an optional package is needed (also an ImportError)

A message says what was expected, what came, and what to do.

PassedOverWarning        a warning: files that are no images were passed over
"""

from __future__ import annotations


class FlawmapError(Exception):
    """Base of every error flawmap raises on purpose; the command prints it in one line, without a traceback.

    Example:
        >>> from flawmap import PaDiM
        >>> try:
        ...     PaDiM(false_alarm_rate=2)
        ... except FlawmapError as error:
        ...     print(error)
        false_alarm_rate must lie between 0 and 1, got 2.0
    """


class ImageError(FlawmapError):
    """One image cannot be read or used; `name` is its path, or its place among the inputs."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class DatasetError(FlawmapError):
    """A folder, glob or data set is missing, empty or not laid out as expected."""


class TrainingSetError(FlawmapError):
    """The good images cannot be learnt from."""


class TrainingError(FlawmapError):
    """A network's training broke down, or its checkpoint cannot be written or belongs to another training."""


class BackboneError(FlawmapError):
    """An unknown backbone or layer, or a backbone that cannot take the input size."""


class WeightsError(BackboneError):
    """Pretrained weights are missing, partial, or belong to another network."""


class ModelFileError(FlawmapError):
    """A model file is missing, damaged, hostile, too new, or cannot be written."""


class NotFittedError(FlawmapError):
    """A detector was asked for results before it was fitted or loaded."""


class ParameterError(FlawmapError, ValueError):
    """A parameter has a value that it cannot have."""


class MissingDependencyError(FlawmapError, ImportError):
    """An optional package is needed for what was asked."""


class PassedOverWarning(UserWarning):
    """Files in a folder or glob were passed over, since they are no images that can be read."""


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number of things in words: "1 image", "2 images"; `several` where the plural is not formed by an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: of a system's error its reason, of others the first line of their text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
