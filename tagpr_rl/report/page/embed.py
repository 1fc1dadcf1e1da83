"""How pages are made: one Jinja environment, data as JSON inside the page, scripts allowed by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tagpr_rl.report.page.names import task_label
from tagpr_rl.report.page.trace import TAG_SHAPES

VIEWER_SCRIPTS = ("dom.js", "diff.js", "trace.js", "histogram.js", "person.js", "viewer.js")
"""In the order in which they are joined; each file is a part of one script."""
LIVE_SCRIPTS = (*VIEWER_SCRIPTS, "live.js")
"""The script of the live view, which asks its server for what is new."""

# Inside <script> only "</script", "<!--" and "<script" can end or change the element; without "<" there is none.
# U+2028 and U+2029 were line ends in old JavaScript.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def json_for_page(value: Any) -> Markup:
    """`value` as JSON that may stand inside a `<script type="application/json">` whatever its texts hold.

    Non-finite numbers are refused (ValueError). The result parses back to `value`.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)


@cache
def environment() -> Environment:
    """The templates of this package, compiled once: everything is escaped, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("tagpr_rl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["task_label"] = task_label
    made.filters["thousands"] = lambda n: f"{n:,}"
    made.filters["numeric"] = lambda head: f"#{head}"
    made.filters["task_column"] = lambda task: f"#{task_label(task)}"
    made.filters["metric_column"] = lambda metric: f"#{metric.label} {metric.arrow}"
    made.filters["seed_column"] = lambda seed: f"#seed {seed}"
    made.globals["shapes"] = TAG_SHAPES
    return made


@cache
def script(names: Sequence[str] = VIEWER_SCRIPTS) -> Markup:
    """The JavaScript files as one script. Not read as templates: braces mean nothing here."""
    made = environment()
    assert made.loader is not None
    parts = [made.loader.get_source(made, name)[0].strip() for name in names]
    text = '"use strict";\n(() => {\n' + "\n\n".join(parts) + "\n})();"
    assert "</" not in text.lower() and "<!--" not in text, "a script must not hold what ends its own element"
    return Markup(text)


def script_source(text: str) -> str:
    """The Content-Security-Policy source that allows exactly this inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
