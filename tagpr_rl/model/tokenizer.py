"""What a tokenizer does to texts: which ids are a response's text, whether tags come back, what is lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.tags.schema import THINK, TagSchema
from tagpr_rl.types import TagprError


def load_tokenizer(folder: Path | str) -> Any:
    """The folder's Hugging Face tokenizer. TagprError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # damaged files fail in the depths of several libraries
        why = " ".join(str(error).split())[:300]
        raise TagprError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {why}); the folder needs "
            "tokenizer.json or the files of its tokenizer class, and the config.json of its model"
        ) from error


def schema_tags(schema: TagSchema | None) -> tuple[str, ...]:
    """All tags of responses, opening and closing; those of the thought alone without a schema."""
    names = (THINK, *(schema.names if schema is not None else ()))
    return tuple(f"<{slash}{name}>" for name in names for slash in ("", "/"))


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`, nothing added."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def dropped_ids(tokenizer: Any, tags: Iterable[str]) -> frozenset[int]:
    """Ids that are no part of a response's text: special tokens, save those that are a tag of a response."""
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    kept = set(tags)
    return frozenset(i for i in special if str(added.get(i, "")).strip() not in kept)


def decoded(tokenizer: Any, ids: Sequence[int], dropped: frozenset[int]) -> str:
    """The text of ids without those in `dropped`."""
    return str(tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False))


def tag_mistakes(tokenizer: Any, tags: Sequence[str]) -> list[str]:
    """What is wrong with tags that the tokenizer does not give back, or uses for something else."""
    named = {text: name for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    mistakes = [
        f"the tag {tag} is the tokenizer's {named[tag]}; name it otherwise (schema_file) or use another model"
        for tag in tags
        if tag in named
    ]
    dropped = dropped_ids(tokenizer, tags)
    back = {tag: decoded(tokenizer, encoded(tokenizer, tag), dropped).strip() for tag in (*tags, "".join(tags))}
    bad = [tag for tag, text in back.items() if "".join(text.split()) != tag or (tag in tags and text != tag)]
    if bad:
        shown = ", ".join(f"{tag!r} becomes {back[tag]!r}" for tag in bad[:3])
        mistakes.append(
            f"the tokenizer does not give {len(bad)} of {len(tags)} tags back ({shown[:300]}), so no response could be "
            "read; use another model, or other names of tags (schema_file)"
        )
    return mistakes


def keeps_spaces(tokenizer: Any) -> bool:
    """Whether a text keeps its white space; a word-level tokenizer joins words by single spaces."""
    return "  " in str(tokenizer.decode(encoded(tokenizer, "a  b")))


def losses(tokenizer: Any) -> tuple[str, ...]:
    """What is lost of a text: "capital letters", "accents", "white space", "rare characters"."""

    def back(text: str) -> str:
        return str(tokenizer.decode(encoded(tokenizer, text), skip_special_tokens=True))

    lost = {
        "capital letters": back("Deep").strip() == "deep",
        "accents": back("caf\u00e9").strip() == "cafe",
        "white space": not keeps_spaces(tokenizer),
        "rare characters": any(c not in back(c) for c in "\u00df\u4f60\U0001f642"),
    }
    return tuple(name for name, is_lost in lost.items() if is_lost)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
