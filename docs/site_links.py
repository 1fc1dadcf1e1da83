"""A hook of mkdocs: on the site, a link to a file outside docs/ becomes its plain text.

GitHub shows the same pages with the repository around them; the site has no repository to link to.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page's Markdown for the site (called by mkdocs for each page)."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        outside = "://" not in found[2] and posixpath.normpath(posixpath.join(folder, found[2])).startswith("..")
        return found[1] if outside else found[0]

    return _LINK.sub(link, markdown)
