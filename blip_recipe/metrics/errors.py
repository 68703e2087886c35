"""What can go wrong while captions are scored. Wrong input is a `RecipeError`; these are faults around it."""

from __future__ import annotations

from blip_recipe.errors import RecipeError


class MetricError(RuntimeError):
    """A scorer could not finish. The next call starts afresh."""


class JavaNotFoundError(MetricError, RecipeError):
    """There is no working Java runtime: the message lists where it was sought and what to install."""


class JavaEndedError(MetricError):
    """A Java process ended before it had answered; the message carries its exit status and what it said.

    Attributes:
        killed: Whether a signal from outside ended it.
    """

    def __init__(self, message: str, killed: bool) -> None:
        super().__init__(message)
        self.killed = killed


class TokenizerError(MetricError):
    """The PTB tokenizer failed; the message carries Java's."""


class MeteorError(MetricError):
    """METEOR answered something else than numbers; the message quotes it."""


class SpiceError(MetricError):
    """SPICE failed, or the disk it writes to; the message carries Java's."""


class SpiceJarsError(SpiceError, RecipeError):
    """SPICE was asked for and its parser could not be fetched: the message says how to put it there by hand."""


class CaptionTooLongError(MetricError):
    """A caption is longer than a scorer can take in bearable time; the message names the image and its caption."""


class CacheFolderError(MetricError):
    """The folder for jars, parses and temporary files cannot be made; the message says how to choose another."""


class MetricTimeoutError(MetricError):
    """A scorer ran out of its time; the message names the image and its caption."""
