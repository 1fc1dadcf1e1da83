"""Base of every config block, and the types that blocks share."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from tagpr_rl.files import user_path

Item = TypeVar("Item", bound=Hashable)


def _make_strict(schema: Any) -> None:
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list | tuple):
            _make_strict(part)
    if isinstance(schema, dict) and schema.get("type") in ("int", "float", "bool", "str"):
        schema["strict"] = True


class Closed(BaseModel):
    """Base of every config block: no unknown keys, immutable, defaults validated, no value of another type.

    Types are strict: `true` and "100" are no numbers, 1 is not `true`, 2.0 is no whole number, and no number is NaN or
    infinite. The docstring below a field is its description in `model_fields`, in the schema and in the generated
    reference.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Strict for numbers, booleans and text alone: a list still becomes a tuple, and text a path."""
        schema = handler(source)
        _make_strict(schema)
        return schema


def path_of(value: Any) -> Any:
    """A path as a user writes it, `~` replaced by the home folder. ValueError for one that cannot be meant so."""
    return user_path(value) if isinstance(value, str) else value


def once(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items. ValueError if one of them stands twice."""
    if twice := [item for position, item in enumerate(items) if item in items[:position]]:
        raise ValueError(f"{twice[0]} stands twice; name each one once")
    return items


def worded(pattern: str, words: str, *, secret: bool = False) -> AfterValidator:
    """Text must match `pattern` as a whole; `words` say in an error what is allowed. A `secret` text is not shown."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"{'the value' if secret else repr(text)} is not {words}")
        return text

    return AfterValidator(check)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Machines = Annotated[int, Field(ge=1, le=4096)]
"""Nodes, devices of a node, or actors: each one is looked at when a run is planned."""
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
UserPath = Annotated[Path, BeforeValidator(path_of)]
PathText = Annotated[
    str, AfterValidator(lambda text: text if user_path(text) and "://" in text else str(user_path(text)))
]
"""A folder, a URL, or another name (a hub's, a stage's)."""
RunName = Annotated[
    str,
    worded(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name: letters, digits, `.`, `_` and `-`, none of the last three first"),
]
Once = AfterValidator(once)
"""Marks a list in which nothing may stand twice."""
