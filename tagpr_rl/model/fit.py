"""Whether a model folder's chat template, tokenizer and settings fit a recipe and each other. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tagpr_rl.model.template import OPEN, TemplateFacts, look
from tagpr_rl.model.tokenizer import first_line, load_tokenizer, schema_tags
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import TagprError


def examine(
    folder: Path, schema: TagSchema, *, file: Path | None = None, prefilled: bool | None = None
) -> tuple[TemplateFacts | None, list[str]]:
    """(facts, mistakes) of a model folder, with the chat template of `file` if there is one.

    `prefilled` is what the recipe says of the thought (`model.thought_prefilled`). The facts' `template` is set if the
    folder's own template must not be used.
    """
    try:
        tokenizer = load_tokenizer(folder)
        if file is not None:
            tokenizer.chat_template = _read(file)
    except TagprError as error:
        return None, [str(error)]
    facts, mistakes = look(tokenizer, schema_tags(schema))
    if facts is None:
        return None, mistakes
    if file is not None:
        facts = replace(facts, template=facts.template or tokenizer.chat_template)
    try:
        stop_ids(folder, facts)
    except TagprError as error:
        mistakes.append(str(error))
    opens = facts.thought == OPEN
    if prefilled not in (None, opens):
        does = "opens <think> itself" if opens else "does not open <think>"
        mistakes.append(f"model.thought_prefilled={str(prefilled).lower()}, but the template {does}; leave the key out")
    return facts, mistakes


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TagprError(f"model.chat_template={file}: {error}; give a UTF-8 file with a Jinja template") from None


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} if there is no file. TagprError if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise TagprError(f"{path}: no JSON ({first_line(error)}); copy the file again") from None
    if not isinstance(value, dict):
        raise TagprError(f"{path}: {type(value).__name__} instead of a JSON object; copy the file again")
    return value


def config_mistakes(config: Mapping[str, Any], facts: TemplateFacts) -> list[str]:
    """What in the model's config.json does not fit its tokenizer."""
    inner = config.get("text_config")
    rows = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, Mapping) else None)
    if rows is not None and type(rows) is not int:
        return [f"config.json's vocab_size is {rows!r}, not a whole number; copy the file again"]
    if rows is None or rows >= facts.num_tokens:
        return []
    return [
        f"the tokenizer has ids up to {facts.num_tokens - 1}, and the model embeds {rows} tokens (vocab_size); use the "
        "model's own tokenizer, or resize its embeddings"
    ]


def stop_ids(folder: Path, facts: TemplateFacts) -> tuple[list[int], list[int]]:
    """(ids at which generation stops by the folder's generation_config.json and config.json, those it should have).

    TagprError if a file has something else in their place.
    """
    known: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_config(folder / name).get("eos_token_id")
        if value is not None:
            known = value if isinstance(value, list) else [value]
            if not all(type(token) is int for token in known):
                raise TagprError(
                    f"{folder / name}: eos_token_id is {value!r}, no token's id or list of them; copy the file again"
                )
            break
    return known, known if facts.end_id in known else [*known, facts.end_id]
