"""The rows that verl's trainers read, as dicts and as parquet files; nothing of verl is imported."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.config import FilterBlock
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.files import read_parquet, write_parquet
from tagpr_rl.prompts.tokens import ChatTokenizer, Messages
from tagpr_rl.types import LampRecord, Prompt, TagprError


def profile_texts(record: LampRecord) -> tuple[str, ...]:
    """The whole profile as PRMU reads it: each item as LaMP writes it into a prompt.

    That line has the user's label, score or title. LaMP's retrieval text lacks it for LaMP_2 and LaMP_3, and without
    it an item does not show a preference.
    """
    return tuple(TASKS[record.task].item_line(dict(item.fields)).strip() for item in record.profile)


def to_row(record: LampRecord, prompt: Prompt, index: int) -> dict[str, Any]:
    """verl's prompt row (its RLHFDataset keys) for one record.

    verl applies the chat template to `prompt`, and hands `data_source`, `reward_model.ground_truth` and `extra_info`
    to the agent loop. `extra_info` has the question as written and the *whole* profile (`profile_texts`), not only the
    items in the prompt, for the reward and PRMU. A record without a gold has `ground_truth` "". Raises TagprError if
    record and prompt do not belong together.
    """
    if prompt.record_id != record.id or prompt.task != record.task:
        raise TagprError(
            f"record {record.id!r} ({record.task}) was paired with the prompt of {prompt.record_id!r} "
            f"({prompt.task}); build the prompt from this record"
        )
    gold = record.gold if record.gold is not None else ""
    return {
        "data_source": record.task,
        "prompt": [dict(message) for message in prompt.messages],
        "ability": "personalization",
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {
            "index": index,
            "record_id": record.id,
            "task": record.task,
            "user_id": record.user_id,
            "split": record.split,
            "gold": gold,
            "question": record.input,
            "profile_texts": list(profile_texts(record)),
        },
    }


def sft_rows(
    tokenizer: ChatTokenizer, examples: Sequence[tuple[Messages, str]], max_response_tokens: int
) -> tuple[list[dict[str, Any]], int]:
    """Tokenised SFT rows {"input_ids", "prompt_length"} and the number left out as too long.

    A cut chain would teach the model to stop in the middle of a thought.
    """
    texts = [tokenizer.render(messages) for messages, _ in examples]
    learned = [tokenizer.learned(text, response) for text, (_, response) in zip(texts, examples, strict=True)]
    prompts, responses = tokenizer.encode_many(texts), tokenizer.encode_many(learned)
    rows, too_long = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        if len(response) + 1 > max_response_tokens:
            too_long += 1
            continue
        rows.append({"input_ids": [*prompt, *response, tokenizer.end], "prompt_length": len(prompt)})
    return rows, too_long


def prompt_schema() -> Any:
    """pyarrow's schema of the rows that `to_row` makes."""
    import pyarrow as pa

    text = pa.string()
    info: dict[str, Any] = {"index": pa.int64()}
    info |= dict.fromkeys(("record_id", "task", "user_id", "split", "gold", "question"), text)
    info["profile_texts"] = pa.list_(text)
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct(info),
        }
    )


def shuffled_rows(source: Path, out: Path, seed: int) -> Path:
    """verl's prompt rows with another user's id and profile for PRMU (extra_info); the prompts stay. Returns `out`.

    Users of a task stand in a random circle and each gets the profile of the next one, so nobody keeps their own.
    """
    import pyarrow.parquet as pq

    profiles: dict[tuple[str, str], Any] = {}
    for row in read_parquet(source, ["extra_info"]):
        info = row["extra_info"]
        profiles.setdefault((info["task"], info["user_id"]), info["profile_texts"])
    donor = circle(list(profiles), seed)

    def shuffled(row: dict[str, Any]) -> dict[str, Any]:
        info = row["extra_info"]
        task = info["task"]
        other = donor[task, info["user_id"]]
        return {**row, "extra_info": {**info, "user_id": other, "profile_texts": profiles[task, other]}}

    write_parquet(out, map(shuffled, read_parquet(source)), pq.read_schema(source))
    return out


def circle(users: Sequence[tuple[str, str]], seed: int) -> Mapping[tuple[str, str], str]:
    """(task, user) -> another user of the task. TagprError if a task has one user."""
    donor: dict[tuple[str, str], str] = {}
    for task in dict.fromkeys(task for task, _ in users):
        ring = sorted(user for other, user in users if other == task)
        if len(ring) < 2:
            raise TagprError(f"prmu_users: shuffled needs two users of {task} or more, and there is one; use own")
        random.Random(f"{seed}/{task}").shuffle(ring)
        donor |= {(task, user): ring[(i + 1) % len(ring)] for i, user in enumerate(ring)}
    return donor


def select(
    rows: Sequence[Mapping[str, Any]], kept: Sequence[int], block: FilterBlock, counts: dict[str, int]
) -> list[int]:
    """Indices of `kept` that pass the filter's tasks, profile size, and share or number. `counts` gets the number of
    rows after each part.

    `rows` are verl's prompt rows (`to_row`). Share and number take evenly spaced rows, so that tasks and
    users stay mixed.
    """
    indices = list(kept)
    if block.tasks is not None:
        indices = [i for i in indices if rows[i]["extra_info"]["task"] in block.tasks]
        counts["tasks"] = len(indices)
    if block.min_items is not None or block.max_items is not None:
        least, most = block.min_items or 0, block.max_items if block.max_items is not None else float("inf")
        indices = [i for i in indices if least <= len(rows[i]["extra_info"]["profile_texts"]) <= most]
        counts["profile_items"] = len(indices)
    wanted = block.questions if block.share is None else round(block.share * len(indices))
    if wanted is not None:
        if wanted < len(indices):
            indices = [indices[i * len(indices) // wanted] for i in range(wanted)]
        counts["questions"] = len(indices)
    return indices
