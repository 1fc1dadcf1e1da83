"""The `data` block of a recipe: questions, retrieval, prompts. All defaults are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count

TaskName = Literal["LaMP_1", "LaMP_2", "LaMP_2N", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"]


class WorldBlock(Closed):
    """The embedded world (used when `data.lamp_dir` is not set)."""

    seed: int = 1
    """Two seeds give two disjoint sets of users."""
    train_users: Count = 1000
    held_out_users: Count = 125
    time_users: Annotated[int, Field(ge=0)] = 100
    """Users of the time split."""
    questions_per_user: Count = 8
    """Over all four tasks."""


class RetrievalBlock(Closed):
    method: Literal["bm25", "dense", "recency", "random", "file", "none"] = "bm25"
    k: Count = 5
    ties: Literal["official", "position"] = "official"
    """Equal scores: as the official code's sort leaves them (fixed on one machine), or in the profile's order."""
    seed: int = 0
    """Of `random`."""
    path: Path | None = None
    """`file`: official rankings, {question id: [item ids]}; with several tasks a folder of `<task>.json`."""
    encoder: Path | None = None
    """`dense`: folder of a Hugging Face encoder."""
    cache: Path | None = None
    """`dense`: folder of computed embeddings; null = `<out>/embeddings`."""
    batch_size: Count = 64
    """`dense`: texts in one pass of the encoder."""

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> RetrievalBlock:
        for method, key in (("file", "path"), ("dense", "encoder")):
            if (getattr(self, key) is not None) != (self.method == method):
                raise ValueError(
                    f"method {self.method} with {key}={getattr(self, key)}: {key} belongs to method {method}"
                )
        return self


class PromptBlock(Closed):
    style: Literal["reasoning", "official"] = "reasoning"
    """Ours with the tag schema, or LaMP's published template with its token budget."""
    max_tokens: Count = 192
    """Prompt limit after the chat template; retrieved items are dropped to meet it."""
    max_response_tokens: Count = 96


class DataBlock(Closed):
    """Where questions come from and how they become prompts."""

    lamp_dir: Path | None = None
    """Folder of official files, `<lamp_dir>/LaMP_2/dev_questions.json`; null = the embedded world."""
    tasks: tuple[TaskName, ...] = Field(default=("LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4"), min_length=1)
    split: Literal["user", "time"] = "user"
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Share of users held out where `lamp_dir` has only one labelled split."""
    limit: Count | None = None
    """At most this many questions per task and split (None = all)."""
    retrieval: RetrievalBlock = RetrievalBlock()
    prompt: PromptBlock = PromptBlock()
    world: WorldBlock = WorldBlock()

    @model_validator(mode="after")
    def _recency_needs_dates(self) -> DataBlock:
        if self.retrieval.method == "recency" and self.split == "user":
            raise ValueError(
                "retrieval.method: recency needs dates, which only the time split has (split: time); the user split's "
                "profiles are in random order"
            )
        return self
