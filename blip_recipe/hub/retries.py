"""Retry policy and error messages for Hub requests.

`huggingface_hub` retries listings and uploads, but not `whoami`, `model_info`, `create_repo`, `create_tag` and
`create_commit`: after a lost reply, a second commit would be created. So callers retry a whole step, which first checks
the state of the Hub.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from json import JSONDecodeError
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, parse_ratelimit_headers

from blip_recipe.errors import PushError, RecipeError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAITS_BEFORE = (0.5, 1.0, 2.0)
"""Seconds between attempts before training. They are short, because the user is waiting."""

WAITS_CHECKPOINT = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts to upload a checkpoint."""

WAITS_PUSH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between attempts to push, unless the Hub sends `Retry-After`."""

LONGEST_WAIT = 300.0
"""Maximum seconds between attempts. The Hub counts its rate limits in windows of five minutes."""

HUB_ERRORS = (OSError, httpx.HTTPError, RuntimeError, ValueError)
"""Exceptions of the client: `HfHubHTTPError` is an `OSError`, the transfer library raises `RuntimeError`, and an
invalid card or a reply that is not JSON raises `ValueError`."""

LOG_IN = "run `hf auth login` or set HF_TOKEN to a token with write access"

XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) ")
"""The HTTP status in a `ConnectionError` of Xet, which raises it for every error status."""


def with_retries(call: Callable[[], T], waits: Sequence[float]) -> T:
    """Call a function, and retry after transient Hub errors, at most `len(waits)` times."""
    for wait in waits:
        try:
            return call()
        except HUB_ERRORS as error:
            if not _is_transient(error):
                raise
            seconds = min(LONGEST_WAIT, _requested_wait(error) or wait)
            logger.warning("The Hub request failed (%s); retrying in %g s", error_summary(error), seconds)
            time.sleep(seconds)
    return call()


def explain(error: BaseException, api: HfApi) -> str:
    """Turn an exception of the Hub client or of this package into a message that says what to do."""
    if isinstance(error, (PushError, RecipeError)):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or turn pushing off."
    status = _status(error)
    if status == 401:
        return f"{api.endpoint} does not accept the Hub token (it is wrong, or has expired): {LOG_IN}."
    if status == 403:
        return f"{api.endpoint} denies access ({error_summary(error)}): {LOG_IN}, or choose another repository."
    if status is None and isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError)):
        return f"{api.endpoint} cannot be reached ({error_summary(error)}): check the network and HF_ENDPOINT."
    return f"{api.endpoint} returned an error: {error_summary(error)}."


def error_summary(error: BaseException) -> str:
    """Summarise an error in one line, with the HTTP status if there is one."""
    answer = _answer(error)
    if answer and answer.server_message:
        return f"{answer.response.status_code}: {answer.server_message.splitlines()[0].rstrip('.')}"
    lines = [line.strip() for line in str(answer or error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(".:")


def _is_transient(error: Exception) -> bool:
    """Whether a retry may help: after network and server errors, rate limits and conflicting commits."""
    if status := _status(error):
        return status in (408, 409, 412, 429) or status >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # A gateway may return an error page instead of JSON.
    return isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError, RuntimeError, JSONDecodeError))


def _requested_wait(error: Exception) -> float | None:
    """The wait that the Hub requests in seconds: `Retry-After`, or its own `ratelimit` header.

    A date in `Retry-After` is ignored, as in `huggingface_hub`.
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
    """The HTTP status of an error, if the Hub sent a response."""
    if answer := _answer(error):
        return answer.response.status_code
    found = XET_STATUS.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(found[1]) if found else None


def _answer(error: BaseException) -> HfHubHTTPError | None:
    """The HTTP error of the Hub behind an exception. The client wraps errors of uploads in a `RuntimeError`."""
    source = error.__cause__ if isinstance(error, RuntimeError) else error
    return source if isinstance(source, HfHubHTTPError) else None
