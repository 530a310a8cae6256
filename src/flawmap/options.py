"""Values that options may have, and limits, each stated once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal

from flawmap.errors import ImageError

Aspect = Literal["squash", "letterbox"]
Reading = Literal["reduced", "whole"]
"""What happens to images of other proportions: they are squashed, or padded with grey."""
Runtime = Literal["auto", "openvino", "torch"]
"""What runs a network."""
Precision = Literal["float32", "bfloat16"]
"""Numbers in which a network computes."""
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
"""The same, or "auto": bfloat16 where the processor has it."""
PRECISION_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
"""What OpenVINO calls them."""
Calibration = Literal["leave-one-out", "holdout"]
"""How good images get held-out scores."""
Criterion = Literal["f1", "youden", "cost"]
"""What the best threshold for labelled images maximizes, or, for "cost", minimizes."""
Alignment = Literal["none", "shift", "rigid", "similarity", "auto"]
"""What of a part's pose is made equal before images are compared; "auto": what helps on the good images."""
AlignmentKind = Literal["shift", "rigid", "similarity"]
"""The same, of a model that aligns."""
FactorDtype = Literal["float32", "bfloat16", "float16"]
"""Numbers in which a model file stores factors."""
GraphFormat = Literal["openvino", "onnx"]
"""Kinds of exported graphs."""
GraphDtype = Literal["float32", "float16"]
"""Numbers in which an exported graph stores constants."""
AUTO = "auto"
"""Groups that the data set names, or else those that are found."""
Groups = str | Callable[[str], Hashable]
"""Which images belong together: "auto", a regular expression on the path, "folder", or a function of the path."""
Fdr = float | None
"""A false-discovery rate, by which the images of a batch are labelled together; None: each by the threshold."""
OnBad = Callable[[ImageError], None]
"""Called with each image that cannot be used, which is then left out; without it, the first such image raises."""

COMMAND_OPTIONS = {"good", "output", "detector", "preset", "dtype", "stride", "strict", "skip_bad", "as_json", "quiet"}
"""Options of `flawmap fit` alone; no detector has a parameter of such a name."""

MIN_IMAGES = 3
"""Fewest good images from which one can be left out: two must remain."""
MAX_SIDE = 16384
"""Largest side of a model's input, in pixels."""
MAX_LAYERS = 64
"""Most layers of a backbone that a model may read."""
MIN_BITS, MAX_BITS = 8, 16
"""Fewest and most bits that the samples of a deep image can use."""
SAME_PROPORTIONS = 1.02
"""Ratio up to which two proportions are alike."""
