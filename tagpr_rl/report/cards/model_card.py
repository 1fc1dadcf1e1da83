"""The model card of an exported stage: what it is, what it was made from, and what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.config import EvaluateStage, Recipe
from tagpr_rl.types import StageManifest


def lineage(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The stages whose weights led to those of `name`, first to last, `name` included."""
    chain = [name]
    while (init := getattr(recipe.stages[chain[0]], "init", None)) is not None:
        chain.insert(0, init)
    return tuple(chain)


def model_card(
    recipe: Recipe,
    name: str,
    manifests: Mapping[str, StageManifest],
    scores: Mapping[str, Mapping[str, Any]],
    *,
    dtype: str,
    counts: Mapping[str, int],
    environment: Mapping[str, Any],
) -> str:
    """README.md of the exported folder.

    Args:
        manifests: manifests of the finished stages, by stage.
        scores: evaluation stage -> its result for this model (EvalResult.as_dict), where there is one.
        counts: what was written (model.convert.convert).
    """
    data = "embedded world" if recipe.data.lamp_dir is None else f"LaMP files ({', '.join(recipe.data.tasks)})"
    start = "a tiny random Qwen3" if recipe.model.path is None else f"`{recipe.model.path.name}`"
    lines = [
        *_front_matter(dtype, environment),
        f"# {recipe.name}: stage `{name}`",
        "",
        f"A language model trained with tagpr_rl {environment.get('tagpr_rl', '?')} (TagPR, arXiv 2509.23140). "
        f"It starts from {start}; data: {data}. {counts['parameters']:,} parameters in {dtype}"
        + (", rounded from the float32 weights that were trained." if dtype != "float32" else "."),
        "",
        "Its answers have the form `<think>` tagged steps `</think>` answer."
        if getattr(recipe.stages[name], "dataset", "chains") == "chains"
        else "It answers directly, without a thought.",
        "",
        "## Lineage",
        "",
        "| stage | kind | steps | recipe values (SHA-256) | finished with |",
        "|---|---|---|---|---|",
        *(_stage_row(recipe, stage, manifests.get(stage)) for stage in _shown(recipe, name)),
        "",
        f"Commit of the code: `{environment.get('commit') or 'unknown'}`"
        + (" with uncommitted changes." if environment.get("uncommitted_changes") else "."),
        "",
        "## Evaluation",
        "",
        *(_scores(scores) or ["Not evaluated in this run."]),
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained("<this folder>")',
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
        "```",
        "",
        "or `vllm serve <this folder>`. `tagpr_export.json` has the SHA-256 of each file.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(dtype: str, environment: Mapping[str, Any]) -> list[str]:
    version = environment.get("packages", {}).get("transformers", "unknown")
    return [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [tagpr, personalization, grpo]",
        f"dtype: {dtype}", f"transformers_version: {json.dumps(version)}", "---", "",
    ]  # fmt: skip


def _shown(recipe: Recipe, name: str) -> Sequence[str]:
    """The stages of the lineage and those whose output they learned from, in recipe order."""
    chain = set(lineage(recipe, name))
    used = {getattr(recipe.stages[stage], "prmu", None) for stage in chain}
    before = list(recipe.stages)[: list(recipe.stages).index(name) + 1]
    kinds = {"data", "prompts", "chains"}
    return [stage for stage in before if stage in chain | used or recipe.stages[stage].kind in kinds]


def _stage_row(recipe: Recipe, name: str, manifest: StageManifest | None) -> str:
    stage = recipe.stages[name]
    steps = getattr(stage, "steps", "")
    if manifest is None:
        return f"| {name} | {stage.kind} | {steps} | - | not finished |"
    figures = ", ".join(f"{key} {value:.4g}" for key, value in list(manifest.metrics.items())[:4])
    steps = (manifest.details.get("stopped") or {}).get("step", steps)
    return f"| {name} | {stage.kind} | {steps} | `{manifest.config_sha256[:16]}` | {figures} |"


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for stage, result in scores.items():
        lines += [f"Stage `{stage}`, {result['n']} questions of held-out users, mean task score {result['score']:.4f}."]
        lines += ["", "| task | metric | value | 95 % interval |", "|---|---|---|---|"]
        lines += [
            f"| {m['task']} | {m['name']} | {m['value']:.4f} | {m['low']:.4f} to {m['high']:.4f} |"
            for m in result.get("metrics", ())
        ]
        lines.append("")
    return lines


def evaluations(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The evaluation stages that ask for the model of stage `name`."""
    return tuple(s for s, stage in recipe.stages.items() if isinstance(stage, EvaluateStage) and name in stage.models)
