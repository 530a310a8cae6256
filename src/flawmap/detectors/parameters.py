"""Parameters of a detector: the annotated attributes of its class, as one pydantic model.

That model checks the values, documents them, stores them in model files, rebuilds a detector from them, and makes the
options of the command.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from typing_extensions import dataclass_transform

from flawmap.errors import ParameterError
from flawmap.images import Preprocessing
from flawmap.images.proportions import ProportionalSize
from flawmap.images.roi import read_roi
from flawmap.options import MAX_BITS, MIN_BITS

MAX_CACHE_MB = 2**22


class Parameters(BaseModel):
    """Checked values of a detector's parameters; those that belong to a machine and not to a model are not stored."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def whole_number(*, least: int = 1, most: int | None = None) -> BeforeValidator:
    """A check that a value is a whole number from `least` to `most`, of Python or numpy."""
    limit = "" if most is None else f" to {most}"

    def check_number(value: object) -> object:
        is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and (
            not is_number or int(value) < least or (most is not None and int(value) > most)  # type: ignore[call-overload]
        ):
            raise ValueError(f"must be a whole number from {least}{limit}, got {value!r}")
        return value if value is None else int(value)  # type: ignore[call-overload]

    return BeforeValidator(check_number)


def _check_side(value: object) -> object:
    """Lists and numpy integers as pydantic takes them. Whether a crop fits is checked by `Preprocessing.of`."""
    if value is None:
        return None
    try:
        Preprocessing.of(value)  # type: ignore[arg-type]
    except ParameterError as error:
        raise ValueError(str(error).removeprefix("resize ")) from error
    return int(value) if isinstance(value, np.integer) else tuple(value) if isinstance(value, list) else value


def _check_resize(value: object) -> object:
    """The same, or a rule such as "long:768"."""
    if isinstance(value, str):
        ProportionalSize.parse(value)
        return value
    return _check_side(value)


def _check_share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"must lie between 0 and 1, got {value}")
    return value


def _check_cache(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= MAX_CACHE_MB):
        raise ValueError(f"must be a number from 0 to {MAX_CACHE_MB}, got {value}")
    return value


def _check_layers(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"layers must be a list of names, got the text {value!r}; write [{value!r}]")
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _check_device(value: object) -> object:
    """A name or a torch.device, which has one; torch says of a name whether there is such a device."""
    if not isinstance(value, str) and not hasattr(value, "type"):
        raise ValueError(f"must be 'auto' or the name of a device, such as 'cpu' or 'cuda', got {value!r}")
    return value


def _check_roi(value: object) -> object:
    """Polygons and masks at once; files are read by `fit`."""
    if value is not None and not isinstance(value, (str, os.PathLike)):
        read_roi(value)
    return value


def _check_groups(value: object) -> object:
    if not (value is None or isinstance(value, str) or callable(value)):
        raise ValueError(f"must be 'auto', a regular expression, 'folder', a function or None, got {value!r}")
    return value


Number = Annotated[int, whole_number()]
"""A whole number from 1."""
Seed = Annotated[int, whole_number(least=0, most=2**63 - 1)]
"""A seed of random numbers."""
Bits = Annotated[int | None, whole_number(least=MIN_BITS, most=MAX_BITS)]
"""Bits of a sample."""
Pixels = Annotated[Any, BeforeValidator(_check_side)]
"""A side in pixels, or (height, width)."""
Canvas = Annotated[Any, BeforeValidator(_check_resize)]
"""A side in pixels, (height, width), or a rule in the proportions of photos: "long:768", "short:512"."""
Share = Annotated[float, AfterValidator(_check_share)]
"""A share between 0 and 1."""
CacheMegabytes = Annotated[float, AfterValidator(_check_cache), Field(exclude=True)]
"""Memory in megabytes."""
WeightsPath = Annotated[str | os.PathLike[str] | None, Field(exclude=True)]
"""A weights file."""
DeviceName = Annotated[Any, BeforeValidator(_check_device), Field(exclude=True)]
"""A device by its name, or a torch.device."""
Workers = Annotated[int | None, Field(exclude=True)]
"""Threads that read images."""
LayerNames = Annotated[Sequence[str] | None, BeforeValidator(_check_layers)]
"""Module names of a backbone."""
Roi = Annotated[Any, BeforeValidator(_check_roi), Field(exclude=True)]
"""A region of interest: a mask image or its bool array, a .json file of polygons, or polygons."""
GroupRule = Annotated[str | Callable[[str], Hashable] | None, BeforeValidator(_check_groups), Field(exclude=True)]
"""Which images belong together."""


def build_parameters(detector: type) -> type[Parameters]:
    """The parameters of a detector's class: its public annotated attributes with their defaults."""
    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(detector, include_extras=True).items():
        if get_origin(hint) is not ClassVar and hint is not ClassVar and not name.startswith("_"):
            if not hasattr(detector, name):
                raise ParameterError(f"{detector.__name__}.{name} needs a default value, as every parameter does")
            fields[name] = (hint, getattr(detector, name))
    return create_model(f"{detector.__name__}Parameters", __base__=Parameters, **fields)


def check(owner: str, parameters: type[Parameters], values: Mapping[str, Any]) -> Parameters:
    """The checked values. Raises ParameterError, which names the parameter and what it expects."""
    unknown = [name for name in values if name not in parameters.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(parameters.model_fields)}"
        raise ParameterError(f"{owner} has no parameter {unknown[0]}; {hint}")
    for name, value in values.items():
        annotation = parameters.model_fields[name].annotation
        if isinstance(value, (str, bytes)) and {float} <= set(get_args(annotation) or (annotation,)) <= {
            float,
            NoneType,
        }:
            raise ParameterError(f"{name} must be a number, got the text {value!r}")
    try:
        return parameters(**values)
    except ValidationError as error:
        raise ParameterError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line: the name, what is expected, what came."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "document"
    context = first.get("ctx", {})
    if isinstance(context.get("error"), ValueError):
        reason = str(context["error"])
        return reason if reason.startswith(name) else f"{name} {reason}"
    if first["type"] == "literal_error":
        return f"{name} must be {context['expected']}, got {first['input']!r}"
    return f"{name} {first['msg'].replace('Input should', 'must')}, got {first['input']!r}"


def describe_parameters(parameters: type[Parameters]) -> str:
    """The `Args:` section of a docstring."""
    lines = [f"        {name}: {field.description}" for name, field in parameters.model_fields.items()]
    return "\n".join(["    Args:", *lines])


def _signature(parameters: type[Parameters]) -> inspect.Signature:
    """Keyword arguments with their types and defaults."""
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
            for name, field in parameters.model_fields.items()
        ]
    )


@dataclass_transform(kw_only_default=True)
class Parametrised:
    """A class whose public annotated attributes are the keyword arguments of its constructor."""

    parameters_type: ClassVar[type[Parameters]]
    """The pydantic model of the parameters."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Parameters by the name of a preset."""
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.parameters_type = build_parameters(cls)
        cls.__signature__ = _signature(cls.parameters_type)
        cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n\n{describe_parameters(cls.parameters_type)}\n"

    def __init__(self, **parameters: Any) -> None:  # noqa: ANN401 (typed by the class's annotations)
        checked = check(type(self).__name__, self.parameters_type, parameters)
        for name in type(checked).model_fields:
            setattr(self, name, getattr(checked, name))
        self._given = frozenset(checked.model_fields_set)

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:  # noqa: ANN401 (the parameters)
        """As a preset, such as that of a paper, configures it; `changes` are further parameters, such as `weights`."""
        if preset not in cls.presets:
            raise ParameterError(f"unknown preset '{preset}'; there are {', '.join(cls.presets)}")
        return cls(**{**cls.presets[preset], **changes})

    @property
    def parameters(self) -> Parameters:
        """The parameters, checked. Raises ParameterError."""
        values = {name: getattr(self, name) for name in self.parameters_type.model_fields}
        return check(type(self).__name__, self.parameters_type, values)


def are_equal(one: object, other: object) -> bool:
    """Whether two values of a parameter are equal; those that numpy cannot compare, such as polygons, are not."""
    try:
        return np.array_equal(np.asarray(one, object), np.asarray(other, object))
    except ValueError:
        return False
