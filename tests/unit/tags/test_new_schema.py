"""A new tag schema is one YAML file and one recipe key: prompts, parser, rubric, model vocabulary and walk follow."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tagpr_rl.cli.walk import walk
from tagpr_rl.config import Recipe, load_recipe
from tagpr_rl.prompts.dataset import Dataset
from tagpr_rl.prompts.tokens import WordTokens
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema, load_schema
from tagpr_rl.types import ParseStatus

ROOT = Path(__file__).resolve().parents[3]
FILE = """
version: "two-moves-1"
tags:
  - {name: recall, purpose: Quote an item of the history., required: true, before: [decide]}
  - {name: decide, purpose: Choose the answer., required: true}
  - {name: doubt, purpose: Name what speaks against it., max_count: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "two_moves.yaml"
    path.write_text(FILE)
    return load_recipe(ROOT / "recipes" / "demo.yaml", [f"schema_file={path}", f"out={tmp_path}"])


@pytest.fixture
def schema(recipe: Recipe) -> TagSchema:
    assert recipe.schema_file is not None
    return load_schema(recipe.schema_file)


def test_the_parser_knows_the_new_tags_alone(schema: TagSchema) -> None:
    text = "<think>\n<recall>a</recall>\n<decide>b</decide>\n</think>\n[1]"
    trace = parse(text, schema).trace
    assert trace is not None and [step.tag for step in trace.steps] == ["recall", "decide"]
    old = parse(text.replace("recall", "examine_examples"), schema)
    assert old.status is ParseStatus.UNKNOWN_TAG


@pytest.mark.parametrize(
    ("steps", "tag"),
    [
        ("<recall>old films</recall><decide>so the first</decide>", 1.0),
        ("<recall>old films</recall>", 0.5),  # one of two required tags
        ("<decide>so the first</decide><recall>old films</recall>", 0.5),  # decide is late: one of two steps is sound
        ("<doubt>maybe</doubt>", 0.0),
    ],
)
def test_the_rubric_scores_by_the_new_schema(schema: TagSchema, steps: str, tag: float) -> None:
    reward = Rubric(schema).score(f"<think>{steps}</think>[1]", task="LaMP_1", gold="[1]")
    assert (reward.components["task"], reward.components["format"]) == (1.0, 1.0)
    assert reward.components["tag"] == pytest.approx(tag)


def test_prompts_name_the_new_tags(recipe: Recipe, schema: TagSchema) -> None:
    dataset = Dataset(recipe, schema)
    text = dataset.prompt_maker("reasoning", WordTokens())(dataset.train[0]).messages[0]["content"]
    assert "<recall> Quote an item of the history (once; before decide)" in text
    assert "<doubt> Name what speaks against it (at most 2 times)" in text
    assert "examine_examples" not in text


def test_the_walk_follows(recipe: Recipe) -> None:
    out = io.StringIO()
    walk(recipe, 2, console=Console(file=out, width=120))
    text = out.getvalue()
    assert "malformed: cut in its last step  ->  TRUNCATED" in text
    assert "<recall>" in text and "at least 1 required" in text and "examine_examples" not in text
