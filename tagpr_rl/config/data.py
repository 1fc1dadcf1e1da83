"""The `data` block of a recipe: questions, retrieval, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count, Once, Seed, UserPath

Users = Annotated[int, Field(ge=1, le=90_000)]
TaskName = Literal["LaMP_1", "LaMP_2", "LaMP_2N", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"]


PUBLISHED_QUESTIONS: Mapping[str, tuple[int, int, int]] = {
    "LaMP_1": (6542, 1500, 1500),
    "LaMP_2": (5073, 1410, 1557),
    "LaMP_3": (20000, 2500, 2500),
    "LaMP_4": (12500, 1500, 1800),
    "LaMP_5": (14682, 1500, 1500),
    "LaMP_7": (13437, 1498, 1500),
}
"""Task -> questions of the time split as published with the benchmark: (train, dev, test)."""


class WorldBlock(Closed):
    """The embedded world (used when `data.lamp_dir` is not set)."""

    seed: Annotated[int, Field(ge=0, le=9999)] = 1
    """Two seeds give two disjoint sets of users."""
    train_users: Users = 1000
    """Users of the user split whose questions are trained on."""
    held_out_users: Users = 125
    """Users of the user split whose questions are evaluated; no stage trains on them."""
    time_users: Annotated[int, Field(ge=0, le=90_000)] = 100
    """Users of the time split, whose early questions are trained on and late ones evaluated."""
    questions_per_user: Annotated[int, Field(ge=4, multiple_of=4)] = 8
    """Questions of a user over all four tasks: a multiple of 4."""


class RetrievalBlock(Closed):
    """Which items of the user's profile a prompt shows."""

    method: Literal["bm25", "dense", "recency", "random", "file", "none"] = "bm25"
    """How items are ranked: bm25 and dense by likeness to the question, recency by date (time split only), random,
    file by rankings from `path`; none shows no items."""
    k: Count = 5
    """Most items that a prompt shows."""
    ties: Literal["official", "position"] = "official"
    """Order of items with equal scores: as the official code's sort leaves them (fixed on one machine only), or their
    order in the profile (the same on every machine)."""
    seed: Seed = 0
    """Seed of the draw of `method: random`."""
    path: UserPath | None = None
    """With `method: file`: official rankings, {question id: [item ids]}; for several tasks a folder of
    `<task>.json`."""
    encoder: UserPath | None = None
    """With `method: dense`: folder of a Hugging Face encoder."""
    cache: UserPath | None = None
    """With `method: dense`: folder that keeps computed embeddings; null = `<out>/embeddings`."""
    batch_size: Count = 64
    """With `method: dense`: texts in one pass of the encoder."""

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> RetrievalBlock:
        for method, key in (("file", "path"), ("dense", "encoder")):
            if (getattr(self, key) is not None) != (self.method == method):
                raise ValueError(
                    f"method {self.method} with {key}={getattr(self, key)}: {key} belongs to method {method}"
                )
        return self


class CompactBlock(Closed):
    """What a compact prompt shows."""

    labels: Count = 5
    """Most of the user's labels that are counted over the whole history, the most frequent first."""
    item_words: Count = 24
    """Words of an item's text; the rest is cut."""
    question_words: Count = 60
    """Words of the question's text; the rest is cut."""


class PromptBlock(Closed):
    """The prompt's form and limits."""

    style: Literal["reasoning", "compact", "official"] = "reasoning"
    """reasoning = an instruction with the tag schema, then items and question; compact = counts of the user's labels,
    short items and a short question, for small models that SFT teaches the tags; official = LaMP's published template
    with its token budget, which asks for no tags. The model of `model.path` itself is asked as with reasoning where
    the run's style is compact."""
    compact: CompactBlock = CompactBlock()
    """What a compact prompt shows."""
    max_tokens: Count = 192
    """Longest prompt after the chat template; the least relevant items are dropped to meet it."""
    max_response_tokens: Count = 96
    """Longest response, in training, rollouts and evaluation; longer ones are cut."""


class DataBlock(Closed):
    """Where questions come from and how they become prompts."""

    lamp_dir: UserPath | None = None
    """Folder of official files, `<lamp_dir>/LaMP_2/dev_questions.json`; null = the embedded world."""
    tasks: Annotated[tuple[TaskName, ...], Once] = Field(default=("LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4"), min_length=1)
    """The LaMP tasks, in the order of the training data. The embedded world has the first four."""
    split: Literal["user", "time"] = "user"
    """LaMP's setting: user = other users are held out; time = later questions of the same users are."""
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Share of users held out if `lamp_dir` has only one labelled split."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training users whose questions train nothing: GRPO stages are validated on them
    (stages.<name>.validation)."""
    limit: Count | None = None
    """Most questions per task and split; null = all of them."""
    skip_defective: Annotated[int, Field(ge=0)] = 0
    """Most defective records of `lamp_dir` that are left out, each one named in data.json and the stage's manifest; the
    data stage stops if there are more, and says how many. `tagpr data check` lists them before."""
    retrieval: RetrievalBlock = RetrievalBlock()
    """Which items of the user's profile a prompt shows."""
    prompt: PromptBlock = PromptBlock()
    """The prompt's form and the limits of prompt and response."""
    world: WorldBlock = WorldBlock()
    """Size and seed of the embedded world, if `lamp_dir` is null."""

    @model_validator(mode="after")
    def _validation_needs_other_users(self) -> DataBlock:
        if self.validation_fraction and self.split == "time":
            raise ValueError(
                "validation_fraction sets users apart, but in the time split those of the test are the same users; "
                "leave it out, or use split: user"
            )
        return self

    @model_validator(mode="after")
    def _recency_needs_dates(self) -> DataBlock:
        if self.retrieval.method == "recency" and self.split == "user":
            raise ValueError(
                "retrieval.method: recency needs dates, which only the time split has (split: time); the user split's "
                "profiles are in random order"
            )
        return self
