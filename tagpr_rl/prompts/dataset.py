"""A recipe's questions, retrieval and prompts: the one place that stages, studies and the walk take them from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from tagpr_rl.config import DataStage, Recipe
from tagpr_rl.data.lamp import load_folder
from tagpr_rl.data.people import set_aside
from tagpr_rl.data.split import split_folder
from tagpr_rl.data.world.generate import World, WorldConfig, make_world
from tagpr_rl.model.embeddings import EmbeddingStore
from tagpr_rl.prompts.compact import INSTRUCTIONS, build_compact_prompt
from tagpr_rl.prompts.prompt import build_official_prompt, build_prompt
from tagpr_rl.prompts.rankings import read_rankings
from tagpr_rl.prompts.retrieve import Retriever, query_and_texts
from tagpr_rl.prompts.tokens import PromptTokens
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, Prompt, TagprError

T = TypeVar("T")
TRAIN, HELD_OUT = "train", "dev"
"""The data stage writes official files under these split names."""
VALIDATION = "validation"
"""The split of those of the training file that train nothing; no file has this name."""
LAMP = "lamp"
"""Their folder in the data stage's folder."""


@dataclass(frozen=True, slots=True)
class Splits:
    """A recipe's questions, divided by user; each side in the recipe's order of tasks."""

    train: list[LampRecord]
    held_out: list[LampRecord]
    n_questions: int
    """Before `data.limit`."""
    world: World | None
    """The embedded world they come from; None = LaMP's files."""
    skipped: tuple[str, ...] = ()
    """A message for each defective record that `data.skip_defective` left out."""


def make_splits(recipe: Recipe, seed: int | None = None) -> Splits:
    """Draw the embedded world or read `data.lamp_dir`, divide by user, apply `data.limit`; writes nothing.

    The data stage writes these very records. `seed`: of the division by user; None = the seed of the recipe's first
    data stage. Raises TagprError for files that cannot be read or divided, and for a
    task that the world does not have.
    """
    data = recipe.data
    skipped: tuple[str, ...] = ()
    world = make_world(world_config(recipe)) if data.lamp_dir is None else None
    if world is not None:
        unknown = set(data.tasks) - {record.task for record in world.records("dev", data.split)}
        if unknown:
            raise TagprError(f"data.tasks: the embedded world has no {', '.join(sorted(unknown))}; set data.lamp_dir")
        train, held_out = ([*world.records(split, data.split)] for split in ("train", "dev"))
    else:
        assert data.lamp_dir is not None
        if seed is None:
            stages = (stage for stage in recipe.stages.values() if isinstance(stage, DataStage))
            seed = next(stages, DataStage()).seed
        actual = split_folder(
            data.lamp_dir,
            data.tasks,
            data.held_out_fraction,
            seed,
            setting=data.split,
            skip_defective=data.skip_defective,
            query=data.retrieval.method in ("bm25", "dense") or data.prompt.style == "compact",
        )
        train, held_out, skipped = actual.train, actual.held_out, actual.skipped
    train, held_out = _by_task(train, data.tasks, TRAIN), _by_task(held_out, data.tasks, HELD_OUT)
    n_questions = len(train) + len(held_out)
    return Splits(first_of_task(train, data.limit), first_of_task(held_out, data.limit), n_questions, world, skipped)


def world_config(recipe: Recipe) -> WorldConfig:
    """The world's generator settings from the recipe."""
    block = recipe.data.world
    return WorldConfig(
        seed=block.seed,
        train_users=block.train_users,
        dev_users=block.held_out_users,
        time_users=block.time_users,
        questions_per_user=block.questions_per_user,
    )


def _by_task(records: Iterable[LampRecord], tasks: Sequence[str], split: str) -> list[LampRecord]:
    """The records of `tasks` as they come back from the split's files: task by task, under the split's name."""
    own: dict[str, list[LampRecord]] = {task: [] for task in tasks}
    for record in records:
        if record.task in own:
            own[record.task].append(replace(record, split=split))
    return [record for rows in own.values() for record in rows]


def first_of_task(records: Sequence[LampRecord], limit: int | None) -> list[LampRecord]:
    """The first `limit` records of each task; all of them if `limit` is None."""
    if limit is None:
        return list(records)
    counts: Counter[str] = Counter()
    kept = []
    for record in records:
        counts[record.task] += 1
        if counts[record.task] <= limit:
            kept.append(record)
    return kept


def evenly(records: list[T], count: int | None) -> list[T]:
    """At most `count` questions, spread evenly over the records, so that tasks and users stay mixed; None = all."""
    if count is None or count >= len(records):
        return records
    return [records[i * len(records) // count] for i in range(count)]


@dataclass(frozen=True)
class Dataset:
    """One recipe's questions, retrieval and prompts."""

    recipe: Recipe
    schema: TagSchema
    folder: Path | None = None
    """The finished data stage's folder; None = the questions are made anew, equal to those that the stage writes."""

    @cached_property
    def train(self) -> list[LampRecord]:
        """The training questions, in the recipe's order of tasks: row N of train.parquet is record N."""
        return self._sides[0]

    @cached_property
    def validation(self) -> list[LampRecord]:
        """The questions of data.validation_fraction's users, which train nothing, in the recipe's order of tasks."""
        return [replace(record, split=VALIDATION) for record in self._sides[1]]

    @cached_property
    def _sides(self) -> tuple[list[LampRecord], list[LampRecord]]:
        both = self._splits.train if self.folder is None else self._written(TRAIN)
        return set_aside(both, self.recipe.data.validation_fraction)

    @cached_property
    def held_out(self) -> list[LampRecord]:
        """The questions of the held-out users, in the recipe's order of tasks."""
        return self._splits.held_out if self.folder is None else self._written(HELD_OUT)

    @cached_property
    def _splits(self) -> Splits:
        return make_splits(self.recipe)

    def _written(self, split: str) -> list[LampRecord]:
        assert self.folder is not None
        return load_folder(self.folder / LAMP, self.recipe.data.tasks, split)

    def retriever(self, *, foreign: bool = False) -> Retriever:
        """The recipe's retrieval.

        `foreign`: for questions that are read with another user's profile. A file of rankings does not rank those;
        BM25 does. Raises TagprError if `method: dense` finds no torch.
        """
        block = self.recipe.data.retrieval
        if foreign and block.method == "file":
            return Retriever(block.k, "bm25", block.seed, block.ties)
        rankings = similarity = None
        if block.path is not None:
            rankings = read_rankings(block.path, self.recipe.data.tasks)
        if block.encoder is not None:
            similarity = self._embeddings.similarity
        return Retriever(block.k, block.method, block.seed, block.ties, similarity, rankings)

    def embed(self) -> None:
        """Compute all embeddings of both splits in large batches, if the recipe's retrieval is dense."""
        if self.recipe.data.retrieval.encoder is not None:
            records = (*self.train, *self.validation, *self.held_out)
            pairs = [query_and_texts(record) for record in records if record.profile]
            self._embeddings.prepare([text for query, texts in pairs for text in (query, *texts)])

    @cached_property
    def _embeddings(self) -> EmbeddingStore:
        block = self.recipe.data.retrieval
        assert block.encoder is not None
        try:
            from tagpr_rl.model.encode import Encoder
        except ModuleNotFoundError as error:
            raise TagprError(
                f"data.retrieval.method dense needs the package {error.name}, which is not installed; install the "
                "extra cpu or gpu, or use bm25"
            ) from None
        device = "cuda" if self.recipe.platform.device == "cuda" else "cpu"
        model = Encoder(block.encoder, batch_size=block.batch_size, device=device)
        return model.store(block.cache or self.recipe.out / "embeddings")

    def prompt_maker(
        self, style: str, tokens: PromptTokens, *, foreign: bool = False, untrained: bool = False
    ) -> Callable[[LampRecord], Prompt]:
        """record -> its prompt under the recipe's retrieval and limit.

        `style` (reasoning, direct or thinking) is that of the project's own prompts; with `data.prompt.style: official`
        the prompts are LaMP's.
        `foreign`: see `retriever`.
        `untrained`: for a model that no stage has trained, which a compact prompt would not tell enough.
        """
        retrieve, block = self.retriever(foreign=foreign), self.recipe.data.prompt
        limit, official = block.max_tokens, block.style == "official"
        compact = block.style == "compact" and not untrained and style in INSTRUCTIONS

        def make(record: LampRecord) -> Prompt:
            items, count = retrieve(record), tokens.count
            if official:
                return build_official_prompt(record, items, max_tokens=limit, count_tokens=count, tokens=tokens)
            if compact:
                return build_compact_prompt(
                    record, items, style=style, block=block.compact, max_tokens=limit, count_tokens=count
                )
            return build_prompt(record, items, style=style, schema=self.schema, max_tokens=limit, count_tokens=count)

        return make
