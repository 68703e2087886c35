"""Retry policy and error messages for Hub requests.

`huggingface_hub` retries listings and uploads by itself, but not `whoami`, `model_info`, `create_repo`, `create_tag` or
`create_commit`: a commit whose reply was lost would be made twice. So callers retry a whole step, which first compares
what the Hub has.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from json import JSONDecodeError
from typing import TYPE_CHECKING, TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from blip_recipe.errors import PushError, RecipeError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAITS_BEFORE = (0.5, 1.0, 2.0)
"""Seconds between attempts before training, when a person is waiting and nothing is lost."""

WAITS_CHECKPOINT = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts to upload a checkpoint: another one follows."""

WAITS_PUSH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between attempts to push, unless the Hub names its own (`Retry-After`)."""

LONGEST_WAIT = 300.0
"""Seconds after which we ask again whatever the Hub says: its rate limits are counted in windows of five minutes."""

HUB_ERRORS = (OSError, httpx2.HTTPError, RuntimeError, ValueError)
"""What the client raises: `HfHubHTTPError` is an `OSError`, the transfer library raises `RuntimeError`, an invalid card
or an answer that is no JSON is a `ValueError`."""

LOG_IN = "run `hf auth login` or set HF_TOKEN to a token with write access"

XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) ")
"""How Xet, which raises `ConnectionError` for any answer that it did not want, tells the status."""


def with_retries(call: Callable[[], T], waits: Sequence[float]) -> T:
    """Call until it succeeds, fails for good, or failed once more than there are waits."""
    for wait in waits:
        try:
            return call()
        except HUB_ERRORS as error:
            if not _is_transient(error):
                raise
            seconds = min(LONGEST_WAIT, _requested_wait(error) or wait)
            logger.warning(
                "The Hub did not answer as it should (%s); trying again in %g s", error_summary(error), seconds
            )
            time.sleep(seconds)
    return call()


def explain(error: BaseException, api: HfApi) -> str:
    """An error of the client, or of ours, as a sentence that says what to do."""
    if isinstance(error, (PushError, RecipeError)):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or do not push."
    status = _status(error)
    if status == 401:
        return f"{api.endpoint} does not accept the Hub token (it is wrong, or has expired): {LOG_IN}."
    if status == 403:
        return f"{api.endpoint} refuses it ({error_summary(error)}): {LOG_IN}, or choose a repository you may write to."
    if status is None and isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError)):
        return f"{api.endpoint} cannot be reached ({error_summary(error)}): check the network and HF_ENDPOINT."
    return f"{api.endpoint} answered with an error: {error_summary(error)}."


def error_summary(error: BaseException) -> str:
    """What an error says in one line, with the status where the Hub gave one."""
    answer = _answer(error)
    if answer and answer.server_message:
        return f"{answer.response.status_code}: {answer.server_message.splitlines()[0].rstrip('.')}"
    lines = [line.strip() for line in str(answer or error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(".:")


def _is_transient(error: Exception) -> bool:
    """Whether trying again may help: the network, the server, a rate limit, or a commit that came in between."""
    if status := _status(error):
        return status in (408, 409, 412, 429) or status >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # A gateway's error page instead of JSON is the network's fault too.
    return isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError, RuntimeError, JSONDecodeError))


def _requested_wait(error: Exception) -> float | None:
    """The seconds that the Hub asks us to wait: `Retry-After` in seconds, or its own `ratelimit` header.

    A `Retry-After` that is a date is ignored, as `huggingface_hub` itself ignores it.
    """
    answer = _answer(error)
    if answer is None:
        return None
    headers = answer.response.headers
    asked = headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error comes from, if the Hub answered at all."""
    if answer := _answer(error):
        return answer.response.status_code
    found = XET_STATUS.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(found[1]) if found else None


def _answer(error: BaseException) -> HfHubHTTPError | None:
    """The Hub's answer behind an error: the client wraps the one to an upload in a `RuntimeError`."""
    source = error.__cause__ if isinstance(error, RuntimeError) else error
    return source if isinstance(source, HfHubHTTPError) else None
