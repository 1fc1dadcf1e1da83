"""Explaining output for the terminal: numbered hops with file and line, and traces coloured by tag."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.pretty import Pretty
from rich.table import Table
from rich.text import Text

from tagpr_rl.report.page.trace import coloured_response
from tagpr_rl.tags.schema import TagSchema

ROOT = Path(__file__).resolve().parents[3]


class Page:
    """How hops are printed: a numbered heading with file and line, then labelled blocks."""

    def __init__(self, console: Console, schema: TagSchema) -> None:
        self.console = console
        self.schema = schema

    def hop(self, number: int, function: Callable[..., Any], purpose: str) -> None:
        """Heading of a hop: the name of the function that it calls, with its file and line."""
        self._heading(number, function.__qualname__, where(function), purpose)

    def hop_in_source(self, number: int, module: str, name: str, purpose: str) -> None:
        """`hop` for a top-level function of a module that imports torch or Ray: its source is read, not loaded."""
        self._heading(number, name, definition(module, name), purpose)

    def _heading(self, number: int, name: str, place: str, purpose: str) -> None:
        self.console.print()
        self.console.rule(Text.assemble((f"{number}  {name}", "bold"), "  ", (place, "dim")), align="left")
        self.say(purpose)

    def say(self, text: str) -> None:
        """A paragraph; never read as markup."""
        self.console.print(Text(text))

    def block(self, label: str, content: Any) -> None:
        """A labelled input or output, indented."""
        self.console.print(Text(label, style="bold cyan"))
        shown = Text(content) if isinstance(content, str) else content
        self.console.print(Padding(shown, (0, 0, 0, 2)))

    def trace(self, text: str) -> Text:
        """A response, one coloured step a line, or with the place of the parser's verdict marked."""
        return coloured_response(text, self.schema, separator="\n")


def value_table(values: Mapping[str, Any]) -> Table:
    """(key, type, value) lines of nested dicts; long texts and lists are cut, with their length."""
    table = Table.grid(padding=(0, 2))
    for key, value in values.items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        for name, item in inner.items():
            kind = type(item).__name__
            if isinstance(item, list):
                kind = f"list[{type(item[0]).__name__}] of {len(item)}" if item else "list of 0"
            table.add_row(Text(name), Text(kind, "dim"), Pretty(item, max_string=60, max_length=2))
    return table


def where(thing: Callable[..., Any]) -> str:
    """`tagpr_rl/data/lamp.py:67` of a function."""
    path = Path(inspect.getsourcefile(thing) or "").resolve()
    return f"{path.relative_to(ROOT)}:{inspect.getsourcelines(thing)[1]}"


def definition(module: str, name: str) -> str:
    """`file:line` of the top-level function `name` of a module, which is not imported. ValueError if it has none."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    match = re.search(rf"^(?:async )?def {name}\b", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"{module} has no function {name}")
    return f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
