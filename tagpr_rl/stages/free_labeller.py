"""Who labels steps in free words for `launch.py chains discover`: the chains stage's labeller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from tagpr_rl.chains.client.chat import Generator
from tagpr_rl.chains.labellers.free_label import MAX_TOKENS, ScriptedFreeLabeller
from tagpr_rl.config import ChainsStage, Recipe
from tagpr_rl.stages.context import LazyRay
from tagpr_rl.stages.generators import Generators


@contextmanager
def free_labeller(recipe: Recipe, stage: ChainsStage, console: Console) -> Iterator[tuple[Generator, int]]:
    """Yield the language model that the stage names as labeller, and its limit of tokens a reply; the scripted free
    labeller where it names none."""
    chosen = stage.labeller
    if isinstance(chosen, str) or chosen.kind == "scripted":
        yield ScriptedFreeLabeller(), MAX_TOKENS
        return
    with LazyRay(recipe) as start_ray, Generators(recipe, stage, start_ray=start_ray, console=console) as made:
        yield made.generator_for(chosen, "labeller"), chosen.max_tokens
