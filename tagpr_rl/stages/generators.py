"""The language models that a chains stage asks: one cache file for all, one vLLM engine per model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import Generator
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.chains.client.spend import Spend
from tagpr_rl.config import ChainsStage, EndpointBlock, Recipe


class Generators:
    """Makes them, and ends them on exit (a context manager)."""

    def __init__(
        self, recipe: Recipe, stage: ChainsStage, *, start_ray: Callable[[], Any], console: Console | None = None
    ) -> None:
        """`start_ray`: joins or starts the run's Ray session; called only for vLLM."""
        self._recipe, self._stage, self._start_ray, self._console = recipe, stage, start_ray, console
        self._stack = ExitStack()
        self._cache: AnswerCache | None = None
        self._engines: dict[str, Generator] = {}

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
            from tagpr_rl.backend.rollout.offline import OfflineGenerator

            self._start_ray()
            engine = OfflineGenerator(self._recipe, block, self.cache, account=account, console=self._console)
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
