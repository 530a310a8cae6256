"""Standard error, and a progress bar there or a caller's own function; one interface for both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

Progress = bool | Callable[[int, int | None], None]
"""True shows a progress bar; a function is called with the images done and, where known, how many there are."""


class StandardError:
    """Standard error as a stream; what cannot be written there is dropped: the work matters more than its messages.

    Example:
        >>> from flawmap.progress import StandardError
        >>> StandardError().write("")
        0
    """

    def write(self, text: str) -> int:
        """Write, if it is open and has room."""
        with suppress(OSError, ValueError, AttributeError):  # full or gone; closed by Python; closed from the start
            _behind_bar().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush likewise."""
        with suppress(OSError, ValueError, AttributeError):
            _behind_bar().flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (of any stream)
        if name == "rich_proxied_file":  # rich would write there itself
            raise AttributeError(name)
        return getattr(_behind_bar(), name)


def _behind_bar() -> Any:  # noqa: ANN401 (any stream, or None)
    """Standard error, also while a progress bar has put its own stream before it."""
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


@contextmanager
def report_progress(progress: Progress, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of images just done."""
    if callable(progress):
        done = 0

        def tell(images: int) -> None:
            nonlocal done
            done += images
            progress(done, total)

        yield tell
    elif progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(file=cast(IO[str], StandardError())), transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task(description, total=total)
            yield lambda images: bar.advance(task, images)
    else:
        yield lambda _: None
