"""The models that a chains stage asks: its teacher and labeller, their answers on disk, and the keep rules."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rich.console import Console

from tagpr_rl.chains.balance import BalanceRules
from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import Generator
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.chains.client.spend import Spend
from tagpr_rl.chains.evidence import EvidenceRules
from tagpr_rl.chains.keep import WORLD_ANSWERS, AnswerRules, KeepRules
from tagpr_rl.chains.labellers.label import Labeller, ModelLabeller, ScriptedLabeller
from tagpr_rl.chains.similar import SimilarRules
from tagpr_rl.chains.teachers.grounded import GroundedTeacher
from tagpr_rl.chains.teachers.heuristic import HeuristicTeacher
from tagpr_rl.chains.teachers.interface import ModelTeacher, Sampling, Teacher, TrainedTeacher
from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.config import ChainsStage, EndpointBlock, Recipe
from tagpr_rl.tags.schema import TagSchema


class Engine(Generator, Protocol):
    """A language model in this run, which holds a device until it is closed."""

    def close(self) -> None:
        """Free the device."""


MakeEngine = Callable[[EndpointBlock, AnswerCache, str], Engine]
"""From a block of kind vllm, the answers on disk and the account that pays to an engine."""


class Generators:
    """The language models of one chains stage: a context manager that ends them on exit."""

    def __init__(
        self, recipe: Recipe, stage: ChainsStage, *, make_engine: MakeEngine, console: Console | None = None
    ) -> None:
        """`make_engine` is called for a block of kind vllm only."""
        self._recipe, self._stage, self._make_engine, self._console = recipe, stage, make_engine, console
        self._stack = ExitStack()
        self._cache: AnswerCache | None = None
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> Generators:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def cache(self) -> AnswerCache:
        """The stage's answers, opened when first used."""
        if self._cache is None:
            self._cache = self._stack.enter_context(AnswerCache(answers_path(self._recipe, self._stage)))
        return self._cache

    def generator_for(self, block: EndpointBlock, role: str) -> Generator:
        """The model of a block of kind openai or vllm. `role` (teacher, labeller) has its own budget, which counts
        what every attempt at this run has spent."""
        account = self._account(role)
        if block.kind == "openai":
            return OpenAIGenerator(block, self.cache, account=account, console=self._console)
        assert block.kind == "vllm", f"{block.kind} is no language model"
        key = block.model_dump_json()  # a teacher that labels its own chains needs one engine
        if key not in self._engines:
            engine = self._make_engine(block, self.cache, account)
            self._stack.callback(engine.close)
            self._engines[key] = engine
        return self._engines[key]

    def spent(self, role: str) -> Spend:
        """What every attempt at this run has spent in that role."""
        return self.cache.spent(self._account(role))

    def _account(self, role: str) -> str:
        return f"{self._recipe.name}/{role}"


def answers_path(recipe: Recipe, stage: ChainsStage) -> Path:
    """File of the models' answers."""
    return stage.answers or recipe.out / "answers.sqlite"


def teacher_for(
    recipe: Recipe,
    *,
    error_rate: float | None = None,
    models: Generators | None = None,
    schema: TagSchema | None = None,
    stage: ChainsStage | None = None,
) -> Teacher:
    """The teacher that `stage` names (None = the recipe's first chains stage); `error_rate` overrides the stage's.
    Without `models` a language model is asked nothing: the rules of `auto` stand in for it. `schema`: the tags of a
    teacher that was trained on them."""
    stage = stage or next((s for s in recipe.stages.values() if isinstance(s, ChainsStage)), ChainsStage())
    chosen, kind = stage.teacher, stage.teacher_kind
    if not isinstance(chosen, str) and kind in ("openai", "vllm"):
        if models is not None:
            generator = models.generator_for(chosen, "teacher")
            if chosen.trained:
                assert schema is not None, "a trained teacher's tags are read by the schema"
                return TrainedTeacher(generator, schema, sampling(chosen, stage))
            return ModelTeacher(generator, sampling(chosen, stage))
        kind = "auto"
    if kind in ("auto", "self"):
        kind = "scripted" if recipe.data.lamp_dir is None else "heuristic"
    if kind == "heuristic":
        return HeuristicTeacher()
    if kind == "grounded":
        return GroundedTeacher(stage.seed)
    return ScriptedTeacher(error_rate=stage.error_rate if error_rate is None else error_rate, seed=stage.seed)


def labeller_for(stage: ChainsStage, models: Generators) -> Labeller:
    """The labeller that the stage names."""
    chosen = stage.labeller
    if isinstance(chosen, str) or chosen.kind == "scripted":
        return ScriptedLabeller()
    generator = models.generator_for(chosen, "labeller")
    # The first pass is greedy, the second sampled. vLLM can be held to "each index once", not every endpoint can.
    temperatures = (0.0, chosen.temperature)
    return ModelLabeller(generator, sampling(chosen, stage), temperatures, exact=chosen.kind == "vllm")


def sampling(block: EndpointBlock, stage: ChainsStage) -> Sampling:
    """How a block's model is asked."""
    return Sampling(temperature=block.temperature, max_tokens=block.max_tokens, seed=stage.seed)


def keep_rules(recipe: Recipe, stage: ChainsStage) -> KeepRules:
    """The stage's thresholds; what the recipe leaves open follows from the recipe's data."""
    keep = stage.keep
    world = recipe.data.lamp_dir is None
    answers = replace(
        WORLD_ANSWERS if world else AnswerRules(),
        rating_tolerance=keep.rating_tolerance,
        generation_gain=keep.generation_gain,
    )
    evidence, scope = keep.profile_evidence, keep.duplicate_scope
    return KeepRules(
        answers=answers,
        min_steps=keep.min_steps,
        max_steps=keep.max_steps,
        wrong_fraction=stage.keep_wrong_fraction,
        label_twice=keep.min_agreement > 0,
        min_agreement=keep.min_agreement or 1.0,
        evidence=EvidenceRules(("measure" if world else "text") if evidence == "auto" else evidence),
        near_duplicates=SimilarRules(("record" if world else "all") if scope == "auto" else scope),
        balance=BalanceRules(keep.max_per_user, keep.max_task_share),
    )
