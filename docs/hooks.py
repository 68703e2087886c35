"""Let pages link to files outside `docs/`: on the site such links lead to the repository, pictures are copied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).parent.parent
IMAGES = "model_cards/examples/shapes_tiny"
"""The pictures of the quickstart's card, which pages may show."""

OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\((?:\.\./)+([^)\s]+)\)")
"""A link or image `[text](../path)` that leaves the folder of its page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures to the site."""
    for path in sorted((CHECKOUT / IMAGES).rglob("*")):
        if path.suffix in (".jpg", ".png"):
            name = path.relative_to(CHECKOUT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that leave `docs/`."""
    depth = page.file.src_uri.count("/")

    def rewrite(match: re.Match[str]) -> str:
        mark, text, path = match.groups()
        climbed = match.group(0).count("../")
        if climbed <= depth:
            return match.group(0)
        if not (CHECKOUT / path.partition("#")[0]).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which is not there.")
        if mark:
            return f"![{text}]({'../' * depth}{path})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    return OUTSIDE.sub(rewrite, markdown)
