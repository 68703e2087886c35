"""Render self-contained pages: their style, their data, and a policy that forbids requests and foreign scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent

ESCAPED = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
"""In JSON, such escapes stand only within strings, where they mean the same characters."""


def render_page(
    template: Path,
    facts: Mapping[str, Any],
    *,
    styles: Sequence[str],
    script: str | None = None,
    images: str = "data:",
) -> str:
    """Render a page, whose texts are escaped. It may use only its own style, script and pictures.

    Args:
        template: The template. It gets `facts`, `style`, `script` and `policy`, and may import those of this folder.
        facts: The variables of the template.
        styles: Names of style sheets of this folder.
        script: The name of a script of this folder, if the page has one.
        images: Sources of pictures, as in a content security policy.

    Raises:
        jinja2.UndefinedError: The template uses an unknown variable.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, code = read_parts(*styles), read_parts(script) if script else None
    policy = security_policy(style, code, images)
    return environment.get_template(template.name).render(facts, style=style, script=code, policy=policy)


@cache
def read_parts(*names: str) -> Markup:
    """Read and join style sheets or scripts of this folder. They are parts of the page, so they are not escaped."""
    return Markup("".join((FOLDER / name).read_text(encoding="utf-8") for name in names))


def to_json(content: Any) -> Markup:
    """Write JSON for a `<script type="application/json">`, which no text in it can end.

    Values that are no numbers become null, and halves of surrogate pairs, which UTF-8 cannot hold, are escaped.
    """
    text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(ESCAPED).encode("utf-8", "backslashreplace").decode())


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def security_policy(style: str, script: str | None, images: str) -> Markup:
    """The content security policy of a page with the texts of its `<style>` and `<script>`, and sources of pictures."""
    directives = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": images,
        "style-src": hash_source(style),
    }
    if script is not None:
        # Trusted types are never made here, so a script cannot turn text into markup.
        directives |= {
            "script-src": hash_source(script),
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }
    return Markup("; ".join(f"{name} {value}" for name, value in directives.items()))


def hash_source(content: str) -> str:
    """The source expression of an inline style or script: the digest of its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
