"""The `flawmap` command: one file per subcommand."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import warnings
from types import FrameType


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _interrupt_again
    warnings.filterwarnings("ignore", module="PIL")  # oddities of images' metadata; damaged images are named as errors
    try:
        from flawmap.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except OSError as error:  # of the help; those of a command have been told
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


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
