"""The `flawmap` command: one file per subcommand."""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _terminate)
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
