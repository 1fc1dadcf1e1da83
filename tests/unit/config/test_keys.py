"""Every recipe key has a sentence that explains it, and is set by a shipped recipe or by a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from tagpr_rl.config import Recipe

ROOT = Path(__file__).resolve().parents[3]
MIN_WORDS = 4


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation: Recipe's stages and blocks, through unions, mappings and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def all_models() -> list[type[BaseModel]]:
    seen: dict[type[BaseModel], None] = {}
    queue: list[type[BaseModel]] = [Recipe]
    while queue:
        model = queue.pop()
        if model not in seen:
            seen[model] = None
            for field in model.model_fields.values():
                queue += models(field.annotation)
    return list(seen)


KEYS = {
    f"{model.__name__}.{name}": field
    for model in all_models()
    for name, field in model.model_fields.items()
    if not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1)  # a stage's `kind`
}


def test_the_blocks_of_every_kind_are_walked() -> None:
    names = {key.partition(".")[0] for key in KEYS}
    assert {"Recipe", "DataBlock", "GrpoStage", "ChainsStage", "KeepBlock", "EndpointBlock", "PlatformBlock"} <= names


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_key_has_a_sentence(key: str) -> None:
    words = (KEYS[key].description or "").split()
    assert len(words) >= MIN_WORDS, f"{key}: {' '.join(words) or 'no docstring below it'}"


def keys_in(value: Any) -> Iterator[str]:
    """The keys of nested mappings; dotted ones (a sweep's) by their last part."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name).rpartition(".")[2]
            yield from keys_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_in(inner)


@cache
def keys_of_recipes() -> frozenset[str]:
    files = [*(ROOT / "recipes").rglob("*.yaml")]
    return frozenset(key for path in files for key in keys_in(yaml.safe_load(path.read_text(encoding="utf-8"))))


@cache
def text_of_tests() -> str:
    files = [path for folder in ("tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path != Path(__file__).resolve())


def is_set(name: str) -> bool:
    """Whether a recipe has the key, or a test writes it as `"key": value`, `key: value`, `block.key=` or `key=`."""
    return name in keys_of_recipes() or bool(re.search(rf"(?<!\w){name}[\"']?(: |=(?!=))", text_of_tests()))


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_key_is_set_somewhere(key: str) -> None:
    assert is_set(key.partition(".")[2]), f"{key}: set by no recipe, test or bench; delete it or test it"


def test_an_unknown_key_is_not_set() -> None:
    assert not is_set("no_such_key_anywhere"[:11])
