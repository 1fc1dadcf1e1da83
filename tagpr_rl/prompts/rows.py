"""LaMP record and prompt -> the row that verl reads; nothing of verl is imported."""

from __future__ import annotations

from typing import Any

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.types import LampRecord, Prompt, TagprError


def profile_texts(record: LampRecord) -> tuple[str, ...]:
    """The whole profile as PRMU reads it: each item as LaMP writes it into a prompt.

    That line has the user's label, score or title. LaMP's retrieval text lacks it for LaMP_2 and LaMP_3, and without
    it an item does not show a preference.
    """
    return tuple(TASKS[record.task].item_line(dict(item.fields)).strip() for item in record.profile)


def to_row(record: LampRecord, prompt: Prompt, index: int) -> dict[str, Any]:
    """verl's prompt row (its RLHFDataset keys) for one record.

    verl applies the chat template to `prompt`, and hands `data_source`, `reward_model.ground_truth` and
    `extra_info` to the agent loop. `extra_info` also carries what the reward and PRMU need: the
    question as written and the *whole* profile (not only the items in the prompt), each item as
    LaMP writes it into a prompt: with the user's label or score, in which the preference shows.
    A record without a gold has `ground_truth` "". Raises TagprError when record and prompt do not belong
    together.
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
