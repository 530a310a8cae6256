"""How many good parts a threshold flags at most, with a confidence: order statistics of held-out scores.

Let k of n independent held-out scores lie above a threshold that is one of them. The share of good parts above that
threshold then follows Beta(k + 1, n - k), or is smaller where scores tie (Wilks 1941). Its quantile is also the upper
bound of Clopper & Pearson (1934): the share q at which at most k of n scores above have the probability 1 - confidence.

Where images come in groups, the n groups are independent and the images are not. A group counts as above the threshold
if one of its images is. A model keeps the number of images in each image's group, but not which group that is. So each
image above the threshold counts as a group of its own, up to the number of groups of its size: never too few.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ParameterError

CONFIDENCE = 0.95
"""Confidence of an upper bound, unless the user asks for another."""
STEPS = 200
"""Halvings of an interval; it ends sooner, at neighbouring numbers."""


def upper_bound(n_above: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound, at this confidence, of the share of good images above a threshold that `n_above` of `n` exceed.

    The `confidence` quantile of Beta(n_above + 1, n - n_above); 1 if all are above. Raises ParameterError.
    """
    _check_share("confidence", confidence)
    if not 0 <= n_above <= n or n < 1:
        raise ParameterError(f"expected 0 to n scores above, of at least one; got {n_above} of {n}")
    if n_above == n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if binomial_tail(n_above, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def binomial_tail(k: int, n: int, share: float) -> float:
    """Probability of at most k hits in n trials that each hit with probability `share`, between 0 and 1.

    The terms come from the largest down, each from its neighbour: no factorial overflows.
    """
    if share <= 0 or k >= n:
        return 1.0
    if share >= 1:
        return 0.0
    peak = min(k, int((n + 1) * share))  # the largest term
    logarithm = math.lgamma(n + 1) - math.lgamma(peak + 1) - math.lgamma(n - peak + 1)
    largest = math.exp(logarithm + peak * math.log(share) + (n - peak) * math.log1p(-share))
    odds = share / (1 - share)
    down, up = np.arange(peak, 0, -1, dtype=np.float64), np.arange(peak, k, dtype=np.float64)
    below = np.cumprod(down / (n - down + 1) / odds).sum()
    above = np.cumprod((n - up) / (up + 1) * odds).sum()
    return min(1.0, float(largest * (1 + below + above)))


def images_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """Fewest good images, or groups of them, that can certify a false-alarm rate: 59 for 5 %, 299 for 1 %.

    With n of them and none above the threshold, the bound is 1 - (1 - confidence) ** (1 / n). Raises ParameterError.
    """
    _check_share("false_alarm_rate", rate)
    _check_share("confidence", confidence)
    return max(1, math.ceil(math.log(1 - confidence) / math.log1p(-rate) - 1e-9))


def most_above(n: int, rate: float, confidence: float = CONFIDENCE) -> int | None:
    """Most of n scores that may lie above a threshold whose bound is at most `rate`; None if even 0 are too many."""
    if n < images_needed(rate, confidence):
        return None
    low, high = 0, n  # the bound of `low` is at most the rate, that of `high` is not
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(middle, n, confidence) <= rate:
            low = middle
        else:
            high = middle
    return low


def certified_threshold(
    scores: NDArray[np.float32],
    group_sizes: NDArray[np.float32] | None,
    n_groups: int,
    rate: float,
    confidence: float = CONFIDENCE,
) -> float:
    """The lowest of the held-out scores (N,) whose bound is at most `rate`.

    Raises ParameterError, with the number that is needed, for too few good images or groups of them.
    """
    most = most_above(n_groups, rate, confidence)
    if most is None:
        what = "good images" if group_sizes is None else "groups of good images"
        raise ParameterError(
            f"to certify {100 * rate:g} % false alarms with {100 * confidence:g} % confidence you need at least "
            f"{images_needed(rate, confidence)} {what} with held-out scores; there are {n_groups}, which can certify "
            f"{100 * upper_bound(0, n_groups, confidence):.3g} %"
        )
    candidates = np.unique(scores)
    low, high = -1, len(candidates) - 1  # none is above the highest, and counts fall as thresholds rise
    while high - low > 1:
        middle = (low + high) // 2
        if groups_above(scores, group_sizes, float(candidates[middle])) <= most:
            high = middle
        else:
            low = middle
    return float(candidates[high])


def groups_above(scores: NDArray[np.float32], group_sizes: NDArray[np.float32] | None, threshold: float) -> int:
    """Held-out scores (N,) above a threshold; of groups, with sizes (N,), the most that can have an image above."""
    above = scores > threshold
    if group_sizes is None:
        return int(np.count_nonzero(above))
    sizes, images = np.unique(group_sizes, return_counts=True)
    n_above = [int(np.count_nonzero(above & (group_sizes == size))) for size in sizes]
    n_groups = [round(float(n / size)) for n, size in zip(images, sizes, strict=True)]
    return sum(min(pair) for pair in zip(n_above, n_groups, strict=True))


def _check_share(name: str, value: float) -> None:
    """Raise ParameterError for a share that is not between 0 and 1."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not (is_number and 0 < value < 1):
        raise ParameterError(f"{name} must lie between 0 and 1, got {value!r}")
