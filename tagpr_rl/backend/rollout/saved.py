"""Token ids and log-probabilities of a step's responses on disk, and training rows that ask for them again.

One Parquet file (zstd) a step, `rollouts/step_0001.parquet` beside the text: columns task, record_id, sample,
prompt_ids, response_ids (int32) and logprobs (float32, of the policy that wrote them). Ids shrink to 1 to 2 bytes a
token and log-probabilities hardly at all, so a response token costs about 7 bytes; a prompt stands once for its group.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.backend.rollout.failures import Failure
from tagpr_rl.files import read_parquet, write_parquet
from tagpr_rl.run.layout import tokens_file
from tagpr_rl.types import TagprError

SAVED_STEP = "saved_step"
"""Key of a training row's extra_info: the step whose responses it asks for."""
_KEY = ("task", "record_id", "sample")


def failed_row(failure: Failure) -> dict[str, Any]:
    """The row of a response that could not be generated: it has no tokens."""
    key = {"task": failure.task, "record_id": failure.record_id, "sample": failure.sample}
    return {**key, "prompt_ids": [], "response_ids": None, "logprobs": None}


def write_tokens(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one step's rows, ordered by task, record and sample, so that a group's equal prompts lie side by side."""
    import pyarrow as pa

    ids, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
    columns = {"task": pa.string(), "record_id": pa.string(), "sample": pa.int32()}
    columns |= {"prompt_ids": ids, "response_ids": ids, "logprobs": numbers}
    ordered = sorted((dict(row) for row in rows), key=lambda row: tuple(row[name] for name in _KEY))
    last: list[int] | None = None
    for row in ordered:  # a group's prompt once: null = as in the row before
        if row["prompt_ids"] == last:
            row["prompt_ids"] = None
        else:
            last = row["prompt_ids"]
    write_parquet(path, ordered, pa.schema(list(columns.items())), compression="zstd")


@functools.lru_cache(maxsize=2)
def read_tokens(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(task, record id, sample) -> row. TagprError if the file is missing or was not written by `write_tokens`."""
    import pyarrow as pa

    if not path.is_file():
        raise TagprError(
            f"{path}: there are no saved tokens of this step; rollouts_from needs rollouts made with save_tokens: true"
        )
    try:
        prompt: list[int] = []
        tokens = {}
        for row in read_parquet(path):
            prompt = row["prompt_ids"] if row["prompt_ids"] is not None else prompt
            tokens[row["task"], row["record_id"], row["sample"]] = {**row, "prompt_ids": prompt}
    except (pa.ArrowException, KeyError) as error:
        raise TagprError(f"{path} is no file of saved tokens ({error}); make it again with save_tokens: true") from None
    return tokens


def saved_rows(
    prompts: Sequence[Mapping[str, Any]], folder: Path, *, steps: int, prompts_per_step: int, group_size: int
) -> list[dict[str, Any]]:
    """verl's prompt rows in the order of the saved steps, each with the step whose responses it asks for.

    Args:
        prompts: the rows of the stage's prompts.
        folder: a stage's `rollouts`.

    Raises:
        TagprError: a step without saved tokens, another number of prompts or samples, an unknown record.
    """
    known = {(row["extra_info"]["task"], row["extra_info"]["record_id"]): row for row in prompts}
    selected = []
    for step in range(1, steps + 1):
        path = tokens_file(folder, step)
        saved = read_tokens(path)
        records = list(dict.fromkeys((task, record) for task, record, _ in saved))
        if len(records) != prompts_per_step or len(saved) != prompts_per_step * group_size:
            raise TagprError(
                f"{path} holds {len(saved)} responses to {len(records)} prompts; the stage has prompts_per_step="
                f"{prompts_per_step} and group_size={group_size}; make them the same"
            )
        for task, record in records:
            if (task, record) not in known:
                raise TagprError(f"{path}: record {record} of {task} is not among the stage's prompts")
            row = known[task, record]
            selected.append({**row, "extra_info": {**row["extra_info"], SAVED_STEP: step}})
    return selected
