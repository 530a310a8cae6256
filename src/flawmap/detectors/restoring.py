"""From an opened model file back to the detector that it holds."""

from __future__ import annotations

from typing import Any, TypeVar

from flawmap.backbones import Policy, pick_device, plain_torch
from flawmap.detectors.detector import Detector
from flawmap.detectors.document import Document, Stored, restore_decision
from flawmap.detectors.parameters import check
from flawmap.errors import ModelFileError, ParameterError
from flawmap.model_file import ModelFile, damaged

D = TypeVar("D", bound=Detector)


@plain_torch()
def restore_detector(kind: type[D], file: ModelFile, document: Document, **settings: Any) -> D:  # noqa: ANN401
    """The model of an opened file, of the detector that it names.

    `settings` are parameters of this machine, of which the detector takes those that it has. Raises ModelFileError.
    """
    known = {name: value for name, value in settings.items() if name in kind.parameters_type.model_fields}
    check(kind.__name__, kind.parameters_type, known)
    device = pick_device(known.get("device", "auto"))
    if "runtime" in known:  # one that this device does not have is no damage of the file
        Policy.choose(device, known["runtime"], "float32", n_images=document.n_images)
    try:
        model = kind(**{**kind.before, **document.parameters, **known})
        model.resize_ = document.resize
        if document.roi is not None:
            model.roi_ = document.roi.mask(model.preprocessing.input_size)
        model._check()
        stored = Stored(file, document, device, kind.localises, {})
        model._restore(stored)
    except ParameterError as error:
        file.check()  # of a damaged file that says more
        raise damaged(file.path, error) from error
    except ModelFileError:
        file.check()
        raise
    file.check()
    model.n_images_, model._stored_dtype = document.n_images, document.factor_dtype
    model._images = document.images
    model.decision_ = restore_decision(file.path, document.decision, stored.tensors)
    model._prepare()
    model._make_ready()
    return model
