"""The errors a person can act on, and the exit codes the commands end with."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable


class RecipeError(Exception):
    """The recipe, the data or the arguments are wrong: nothing was trained, nothing was written (exit code 2).

    The message says what was read, what was expected and what to do next.
    """


class PushError(Exception):
    """The work is done and saved, but it did not reach the Hub (exit code 3).

    The message names the command that finishes the job.
    """


class SaveError(Exception):
    """Something could not be written, most likely because the disk is full (exit code 1).

    What was saved before is whole; the message says how to go on.
    """


class StoppedError(BaseException):
    """A batch system asked the run to stop (exit code 128 plus the signal's number, as a shell counts).

    No `Exception`, so that nothing takes it for a failure of its own.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}; the same command resumes from the last checkpoint")
        self.exit_code = 128 + received


EXIT_CODES: dict[type[BaseException], int] = {RecipeError: 2, PushError: 3, SaveError: 1, KeyboardInterrupt: 130}


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main` and end the process with one clear line instead of a traceback.

    Exit codes: 0 done, 1 not saved, 2 wrong input, 3 not pushed, 130 interrupted, 128 plus its number stopped by a
    signal; anything else keeps its traceback and gives 1.
    """
    # On some processors bitsandbytes wishes for a package that would run code from the Hub, in front of every message.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        main()
    except tuple(EXIT_CODES) as error:
        print(f"error: {error}" if str(error) else "error: interrupted", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
