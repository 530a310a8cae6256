"""The `flawmap` command: one file per subcommand."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import warnings
from types import FrameType

from flawmap.progress import StandardError


def main() -> None:
    """Entry point of the command."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _interrupt_again
    warnings.filterwarnings("ignore", module="PIL")  # oddities of images' metadata; damaged images are named as errors
    try:
        from flawmap.cli.app import app

        app()
    except KeyboardInterrupt:
        StandardError().write("interrupted\n")
        sys.exit(130)
    except OSError as error:  # of the help; those of a command have been told
        StandardError().write(f"error: {error}\n")
        sys.exit(1)


def _open_closed_streams() -> None:
    """Open what the caller has closed of the three standard streams: else the first file takes its number.

    Messages that libraries print would then be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Unwind on SIGTERM, so that half-written files are removed."""
    sys.exit(128 + number)


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that fell into a destructor, where Python would drop it."""
    if lost.exc_type in (KeyboardInterrupt, SystemExit):
        number = signal.SIGINT if lost.exc_type is KeyboardInterrupt else signal.SIGTERM
        threading.Timer(0.05, _thread.interrupt_main, [number]).start()
    else:
        sys.__unraisablehook__(lost)
