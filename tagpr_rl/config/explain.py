"""What is wrong with a recipe or a sweep, in words: one line per mistake, with key, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tagpr_rl.config.endpoints import BY_BLOCK, BY_NAME
from tagpr_rl.config.kinds import KINDS
from tagpr_rl.config.retired import remedy
from tagpr_rl.types import did_you_mean

_EXPECTED = {
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "finite_number": "a finite number is expected",
    "bool_type": "true or false is expected",
    "string_type": "text is expected",
    "path_type": "a path is expected",
    "tuple_type": "a list is expected",
    "dict_type": "a block of keys is expected",
    "model_type": "a block of keys is expected",
    "model_attributes_type": "a block of keys is expected",
    "missing": "this key is missing",
    "invalid_key": "a key is text; put it into quotes",
}
"""Type of a pydantic error -> the message."""
_AS_SWITCH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def explain(error: ValidationError, root: type[BaseModel], stages: Collection[str] = ()) -> list[str]:
    """The mistakes of a recipe or sweep of class `root`; `stages` are the names that the recipe has."""
    items = error.errors(include_url=False)
    places = [tuple(item["loc"]) for item in items]
    lines = []
    for item, place in zip(items, places, strict=True):
        if item["type"] == "too_short" and any(other[: len(place)] == place != other for other in places):
            continue  # pydantic counts the items that are right, and the wrong ones are named already
        lines.append(_line(item, root, stages))
    return lines


def _line(item: Any, root: type[BaseModel], stages: Collection[str]) -> str:
    place = tuple(item["loc"])
    key = _dotted(place) or root.__name__.lower()
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        if (instead := remedy(key)) is not None:
            return f"{key}: this key no longer exists; {instead}"
        owner = _block_at(root, place)
        known = list(owner.model_fields) if owner else []
        hint = did_you_mean(str(place[-1]), known, otherwise=f"known keys: {', '.join(known)}")
        return f"{key}: unknown key; {hint}"
    if kind == "union_tag_not_found":
        near = did_you_mean(str(place[-1]), [str(name) for name in stages if name != place[-1]])
        return f"{key}: {f'{near} A new' if near else 'a'} stage needs a kind: {', '.join(KINDS)}"
    if kind == "union_tag_invalid":
        given = value.get("kind") if isinstance(value, dict) else value
        hint = did_you_mean(str(given), KINDS, otherwise=f"the kinds are {', '.join(KINDS)}")
        return f"{key}.kind: no stage is of the kind {given!r}; {hint}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if kind in ("value_error", "missing"):
        message = _EXPECTED.get(kind, message)
        at_root = not place
        return "\n  ".join(line if at_root else f"{key}: {line}" for line in message.splitlines())
    if kind in ("too_short", "too_long"):
        side, bound = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        message = f"{side} {item['ctx'][bound]} items are expected"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(item["ctx"]["expected"])) or [str(item["ctx"]["expected"])]
        near = did_you_mean(str(value), allowed) if isinstance(value, str) else ""
        message = f"one of {', '.join(allowed)} is expected{f'; {near}' if near else ''}"
    message = _EXPECTED.get(kind, message.replace("Input should be", "it should be"))
    return f"{key}: {message} (got {_shown(value)}){_remedy(kind, value, item.get('ctx') or {})}"


def _dotted(place: Sequence[Any]) -> str:
    """The key of a pydantic location, without the tags of unions that pydantic puts into it."""
    parts = [part for part in place if part not in (BY_NAME, BY_BLOCK)]
    if len(parts) > 2 and parts[0] == "stages":  # the discriminator's value
        parts = [*parts[:2], *parts[3:]]
    return ".".join(str(part) for part in parts if not re.search(r"[\[(]", str(part)))


def _shown(value: Any) -> str:
    """A value as a recipe writes it, cut to a line."""
    text = (
        {True: "true", False: "false", None: "null"}.get(value)
        if value is None or value is True or value is False
        else None
    )
    text = repr(value) if text is None else text
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remedy(kind: str, value: Any, context: Any) -> str:
    """`; write ...` for a value whose meaning is plain."""
    if (
        kind == "bool_type"
        and isinstance(value, str)
        and (meant := _AS_SWITCH.get(value.lower(), value.lower())) in ("true", "false")
    ):
        return f"; write {meant}"
    if kind == "int_from_float" or (kind == "int_type" and isinstance(value, float) and value.is_integer()):
        return f"; write {value:.0f}"
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it into quotes if it is meant as text"
    if kind == "tuple_type":
        return f"; write [{value}]" if isinstance(value, str | int | float) else ""
    most = context.get("le", context.get("lt"))
    if kind == "float_type" and isinstance(value, str) and (percent := re.fullmatch(r"([0-9.]+) ?%", value)):
        return f"; write {float(percent[1]) / 100:g}" if percent[1].count(".") < 2 and percent[1] != "." else ""
    if kind in ("less_than", "less_than_equal") and most == 1 and 1 <= value <= 100:
        return f"; for {value:g} % write {value / 100:g}"
    if (
        kind in ("int_type", "float_type")
        and isinstance(value, str)
        and re.fullmatch(r"[-+0-9a-fA-FxXoO_:.,eE ]+", value)
    ):
        return "; write plain decimal digits, without quotes"
    return ""


def _block_at(root: type[BaseModel], place: Sequence[Any]) -> type[BaseModel] | None:
    """The config class that holds the last key of a pydantic error location."""
    current: Any = root
    for part in place[:-1]:
        if part in KINDS and current is not root:
            current = KINDS[part].config
        elif isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
            if get_origin(current) is dict:
                current = object
            choices = [get_args(a)[0] if get_origin(a) is Annotated else a for a in get_args(current)]
            blocks = [a for a in choices if isinstance(a, type) and issubclass(a, BaseModel)]
            current = blocks[0] if len(blocks) == 1 else current  # `Block | None`
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
