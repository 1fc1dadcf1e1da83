"""YAML and JSON that a user wrote, as plain values: the only reader of recipes, overrides, sweeps and tag schemas.

A value has one spelling. Numbers are decimal digits (`3`, `0.5`, `1e-4`), booleans are `true` and `false`. Other
spellings of YAML 1.1 are text: `yes`, `010`, `0x10`, `1_000` and `1:30` would become another value than the one that
is written. Merge keys (`<<: *block`) work; a block's own keys win.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tagpr_rl.types import TagprError

MAX_BYTES = 4 * 2**20
"""Size of a file."""
MAX_VALUES = 100_000
"""Values of a file, each counted as often as aliases repeat it."""
MAX_DEPTH = 64
"""Blocks inside blocks."""

_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "null": type(None),
    "str": str,
    "map": dict,
    "seq": list,
}


def read_document(path: Path, what: str) -> Any:
    """The plain values of a `.json` file, or of any other file as YAML; `what` names it in errors.

    Raises TagprError naming file, line and key: for a file that is not there or cannot be read, for text that is no
    YAML or JSON, and for values that no key can take (dates, tags, NaN, numbers beyond 64 bits).
    """
    where = f"{what} {path}"
    try:
        if path.is_dir():
            raise TagprError(f"{where} is a folder; name the file itself")
        if path.stat().st_size > MAX_BYTES:
            raise TagprError(f"{where} has {path.stat().st_size:,} bytes, and at most {MAX_BYTES:,} are read")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TagprError(f"{where}: no such file (looked from {Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise TagprError(f"{where} is not valid YAML: it is no UTF-8 text ({error})") from None
    except OSError as error:
        raise TagprError(f"{where} cannot be read: {error.strerror or error}") from None
    if path.suffix.lower() == ".json":  # PyYAML reads no tabs, and it splits an escaped emoji into two surrogates
        return parse_json(text, where)
    return parse_yaml(text, where)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """`read_document` of a file that holds a mapping. TagprError for any other content."""
    value = read_document(path, what)
    if not isinstance(value, dict):
        found = "it is empty" if value is None else f"it is a {type(value).__name__}"
        raise TagprError(f"{what} {path} must be a mapping of keys, and {found}")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of one YAML document. TagprError, which begins with `where`, for anything else."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise TagprError(f"{where} is not valid YAML: {what}{line}") from None
    except RecursionError:
        raise TagprError(f"{where} is not valid YAML: blocks are nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # PyYAML has such bugs
        raise TagprError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _Values(where, lines="\n" in text.strip()).value(node, ())


def parse_json(text: str, where: str) -> Any:
    """The plain values of a JSON text, by the same rules as `parse_yaml`."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no finite number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := _repeated([key for key, _ in pairs]):
            raise ValueError(f"key given twice: {twice}")
        return dict(pairs)

    def number(digits: str) -> int | float:
        return _number(digits, whole=digits.lstrip("-").isdigit())

    def check(value: Any) -> None:
        for inner in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)
        if isinstance(value, str) and _CONTROL.search(value):
            raise ValueError(f"{value[:40]!r} holds a control character")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_int=number, parse_float=number)
        check(value)
        return value
    except RecursionError:
        raise TagprError(f"{where} is not valid JSON: blocks are nested too deeply") from None
    except ValueError as error:
        raise TagprError(f"{where} is not valid JSON: {error}") from None


def _number(text: str, *, whole: bool) -> int | float:
    """ValueError for what 64 bits cannot hold."""
    if whole:
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise ValueError(f"{text[:24]} is too large a number")
        return int(text)
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:24]} is too large a number")
    return value


def _repeated(keys: list[str]) -> str:
    return ", ".join(sorted({key for key in keys if keys.count(key) > 1}))


class _Loader(yaml.SafeLoader):
    """Composes nodes that say whether a scalar's type was left to the reader (`plain`) or written down as a tag."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        tag = None if isinstance(event, yaml.AliasEvent) else event.tag
        node: Any = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent):
            node.written_tag = tag
        return node


_Loader.yaml_implicit_resolvers = {}


class _Values:
    """From nodes to plain values, without PyYAML's constructors, which raise whatever they meet."""

    def __init__(self, where: str, *, lines: bool) -> None:
        self._where, self._lines = where, lines
        self._left = MAX_VALUES
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        """The value of a node; `path` is its dotted key, for errors."""
        self._left -= 1
        if self._left < 0:
            self._fail(node, path, f"more than {MAX_VALUES:,} values, with aliases repeated")
        if id(node) in self._open:
            self._fail(node, path, "an alias stands inside the block that it repeats")
        if len(self._open) > MAX_DEPTH:
            self._fail(node, path, "blocks are nested too deeply")
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        else:
            value = self._scalar(node, path)
        self._open.remove(id(node))
        tag = node.written_tag  # type: ignore[attr-defined]
        if tag not in (None, "!"):
            kind = _TYPES.get(tag.removeprefix(_TAG))
            if kind is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                self._fail(node, path, f"the tag {tag.replace(_TAG, '!!')} is not read here; write a plain value")
        return value

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            plain = isinstance(key_node, yaml.ScalarNode) and key_node.style is None
            if plain and key_node.value == "<<":
                for block in self._merged(value_node, path):
                    merged = {**block, **merged}  # of several blocks the first one wins
                continue
            key = self.value(key_node, path)
            if not isinstance(key, str) or not key:
                self._fail(key_node, path, f"the key {key!r} is no text; put it into quotes")
            if key in own:
                self._fail(key_node, path, f"key given twice: {key}")
            own[key] = self.value(value_node, (*path, key))
        return {**{key: value for key, value in merged.items() if key not in own}, **own}

    def _merged(self, node: yaml.Node, path: tuple[str, ...]) -> list[dict[str, Any]]:
        value = self.value(node, (*path, "<<"))
        blocks = value if isinstance(value, list) else [value]
        if not all(isinstance(block, dict) for block in blocks):
            self._fail(node, path, "<<: takes a block of keys or a list of them, for example <<: *defaults")
        return blocks

    def _scalar(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        text: str = node.value
        if _CONTROL.search(text):
            self._fail(node, path, f"{text[:40]!r} holds a control character")
        if node.style is not None or node.written_tag in ("!", f"{_TAG}str"):  # type: ignore[attr-defined]
            return text
        if text in _WORDS:
            return _WORDS[text]
        whole = _INT.fullmatch(text) is not None
        if whole or _FLOAT.fullmatch(text):
            try:
                return _number(text, whole=whole)
            except ValueError as error:
                self._fail(node, path, str(error))
        if _NOT_FINITE.fullmatch(text):
            self._fail(node, path, f"{text} is no finite number")
        if _DATE.fullmatch(text):
            self._fail(node, path, f"{text} looks like a date, which no key takes; as text it should be in quotes")
        return text

    def _fail(self, node: yaml.Node, path: tuple[str, ...], problem: str) -> NoReturn:
        key = f" {'.'.join(path)}:" if path else ""
        line = f", line {node.start_mark.line + 1}" if self._lines else ""
        raise TagprError(f"{self._where}{line}:{key} {problem}")
