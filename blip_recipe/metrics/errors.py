"""Exceptions of the scorers. Wrong input raises `RecipeError` instead."""

from __future__ import annotations

from blip_recipe.errors import RecipeError


class MetricError(RuntimeError):
    """A scorer failed. It can be called again."""


class JavaNotFoundError(MetricError, RecipeError):
    """No Java runtime was found. The message lists the places tried and what to install."""


class JavaEndedError(MetricError):
    """A Java process ended too early. The message has its exit status and its stderr.

    Attributes:
        killed: Whether a signal ended it.
    """

    def __init__(self, message: str, killed: bool) -> None:
        super().__init__(message)
        self.killed = killed


class TokenizerError(MetricError):
    """The PTB tokenizer failed. The message has Java's stderr."""


class MeteorError(MetricError):
    """METEOR returned something else than numbers. The message quotes it."""


class SpiceError(MetricError):
    """SPICE failed, or could not write its files. The message has the reason."""


class SpiceJarsError(SpiceError, RecipeError):
    """SPICE's parser could not be downloaded. The message says how to install it by hand."""


class CaptionTooLongError(MetricError):
    """A caption is too long to be scored in reasonable time. The message names the image and its caption."""


class CacheFolderError(MetricError):
    """The cache folder cannot be created. The message says how to choose another."""


class MetricTimeoutError(MetricError):
    """A scorer exceeded its time limit. The message names the image and its caption."""
