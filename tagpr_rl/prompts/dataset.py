"""Records and prompts as the stages share them: read the data stage's files, build prompts, tokenise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.config import Recipe
from tagpr_rl.data.lamp import load_folder
from tagpr_rl.prompts.prompt import build_official_prompt, build_prompt
from tagpr_rl.prompts.rankings import read_rankings
from tagpr_rl.prompts.retrieve import Retriever, query_and_texts
from tagpr_rl.prompts.tokens import ChatTokenizer, Messages
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, Prompt

TRAIN, HELD_OUT = "train", "dev"
"""The data stage writes official files under these split names."""


def load_split(recipe: Recipe, data: Path, split: str) -> list[LampRecord]:
    """The records of one split as the data stage wrote them, in the recipe's order of tasks."""
    return load_folder(data / "lamp", recipe.data.tasks, split)


def evenly(records: list[LampRecord], count: int | None) -> list[LampRecord]:
    """At most `count` questions, spread evenly over the records (tasks and users stay mixed)."""
    if count is None or count >= len(records):
        return records
    return [records[i * len(records) // count] for i in range(count)]


def retriever(recipe: Recipe, prepare: Sequence[LampRecord] = (), *, lent: bool = False) -> Retriever:
    """The recipe's retrieval. With `prepare`, dense retrieval embeds all texts of these records in large batches.
    `lent`: for questions read with another user's profile, which a file of rankings does not rank; BM25 does."""
    block = recipe.data.retrieval
    if lent and block.method == "file":
        return Retriever(block.k, "bm25", block.seed, block.ties)
    rankings = similarity = None
    if block.path is not None:
        rankings = read_rankings(block.path, recipe.data.tasks)
    if block.encoder is not None:
        from tagpr_rl.model.encode import Encoder

        device = "cuda" if recipe.platform.device == "cuda" else "cpu"
        encoder = Encoder(block.encoder, batch_size=block.batch_size, device=device)
        store = encoder.store(block.cache or recipe.out / "embeddings")
        pairs = [query_and_texts(record) for record in prepare if record.profile]
        store.prepare([text for query, texts in pairs for text in (query, *texts)])
        similarity = store.similarity
    return Retriever(block.k, block.method, block.seed, block.ties, similarity, rankings)


def prompt_maker(
    recipe: Recipe, schema: TagSchema, style: str, tokenizer: ChatTokenizer, *, lent: bool = False
) -> Callable[[LampRecord], Prompt]:
    """record -> its prompt under the recipe's retrieval and limit; `style` is that of a recipe with our prompts;
    `lent`: see retriever."""
    retrieve, limit = retriever(recipe, lent=lent), recipe.data.prompt.max_tokens
    official = recipe.data.prompt.style == "official"

    def make(record: LampRecord) -> Prompt:
        items, count = retrieve(record), tokenizer.count
        if official:
            return build_official_prompt(record, items, max_tokens=limit, count_tokens=count, tokens=tokenizer)
        return build_prompt(record, items, style=style, schema=schema, max_tokens=limit, count_tokens=count)

    return make


def sft_rows(
    tokenizer: ChatTokenizer, examples: Sequence[tuple[Messages, str]], max_response_tokens: int
) -> tuple[list[dict[str, Any]], int]:
    """Tokenised SFT rows {"input_ids", "prompt_length"} and the number left out as too long.

    A cut chain would teach the model to stop in the middle of a thought.
    """
    prompts = tokenizer.encode_many([tokenizer.render(messages) for messages, _ in examples])
    responses = tokenizer.encode_many([tokenizer.response(response) for _, response in examples])
    rows, dropped = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        if len(response) + 1 > max_response_tokens:
            dropped += 1
            continue
        rows.append({"input_ids": [*prompt, *response, tokenizer.end], "prompt_length": len(prompt)})
    return rows, dropped


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows atomically. The row dicts must share their keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tagpr_rl.files import replacing

    table = pa.Table.from_pylist([dict(row) for row in rows])
    with replacing(path) as temp:
        pq.write_table(table, temp)
