"""A progress bar on standard error, or a caller's own function; one interface for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[int, int | None], None]
"""True shows a progress bar; a function is called with the images done and, where known, how many there are."""


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
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task(description, total=total)
            yield lambda images: bar.advance(task, images)
    else:
        yield lambda _: None
