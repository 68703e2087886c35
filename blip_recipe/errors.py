"""The exceptions of the package and the exit codes of its commands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


class RecipeError(Exception):
    """The recipe, the data or the arguments are wrong (exit code 2).

    The message tells what was read, what was expected and what to do.
    """


class PushError(Exception):
    """The model is trained and saved, but the push to the Hub failed (exit code 3).

    The message names the command that pushes it again.
    """


class SaveError(Exception):
    """A file could not be written, usually because the disk is full (exit code 1).

    Files that were saved before are intact; the message tells how to continue.
    """


class StoppedError(BaseException):
    """A signal asked the run to stop (exit code 128 plus the number of the signal, as in a shell).

    It is not an `Exception`, so that no `except Exception` catches it.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}: run the same command again to resume from the last checkpoint")
        self.exit_code = 128 + received


EXIT_CODES: dict[type[BaseException], int] = {RecipeError: 2, PushError: 3, SaveError: 1, KeyboardInterrupt: 130}


def run_command(main: Callable[[], None]) -> None:
    """Run the `main` of a command, and print its errors as one message instead of a traceback.

    Exit codes: 0 done, 1 not saved, 2 wrong input, 3 not pushed, 130 interrupted, 128 plus its number for a signal.
    Other errors keep their traceback and have code 1. A reader of standard output that has seen enough, such as
    `head`, is no error.
    """
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes what is left when it exits, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except tuple(EXIT_CODES) as error:
        print(f"error: {error}" if str(error) else "error: interrupted", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
