"""What can go wrong while captions are scored. Wrong input is a `RecipeError`; these are faults around it."""

from __future__ import annotations


class MetricError(RuntimeError):
    """A scorer could not finish. The next call starts afresh."""


class JavaNotFoundError(MetricError):
    """No working Java runtime: the message lists where it was sought and what to install."""


class TokenizerError(MetricError):
    """The PTB tokenizer failed; the message carries Java's."""


class MeteorError(MetricError):
    """METEOR failed; the message carries Java's."""


class SpiceError(MetricError):
    """SPICE failed; the message carries Java's."""


class SpiceJarsError(SpiceError):
    """SPICE's parser is not here and could not be fetched; the message says how to put it there by hand."""


class MetricTimeoutError(MetricError):
    """A scorer ran out of its time; the message names the image and its caption."""
