"""The README.md of a trained model: of an exported language model, and of a personalization reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.config import EvaluateStage, PrmuStage, Recipe, answers_directly
from tagpr_rl.report.page.names import HELD_OUT, words
from tagpr_rl.types import StageManifest

_USERS = {
    "attention": "a generic vector e_0 plus attention over the user's profile, asked by each token of the response"
    " (and a vector of their own for users of the training set)",
    "identity": "a generic vector e_0 plus a vector of their own for users of the training set (baseline)",
    "text": "the profile stands in the backbone's input (baseline)",
    "generic": "no user at all (baseline)",
}


def lineage(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The stages from whose weights `name` was trained, first to last, and `name` itself."""
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
        scores: evaluation stage -> its result for this model (EvalResult.as_dict).
        counts: the return value of model.convert.convert.
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
        "It answers directly, without a thought."
        if answers_directly(recipe, name)
        else "Its answers have the form `<think>` tagged steps `</think>` answer.",
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
        *(_scores(scores, HELD_OUT[recipe.data.split][0]) or ["Not evaluated in this run."]),
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
        *_template(manifests, answers_directly(recipe, name)),
    ]
    return "\n".join(lines)


def _template(manifests: Mapping[str, StageManifest], direct: bool) -> list[str]:
    """What the model stage found of the chat template, and how the model is to be asked; [] in older runs."""
    facts = next((m.details["template"] for m in manifests.values() if "template" in m.details), None)
    if facts is None:
        return []
    lines = [f"A response ends with `{facts['end']}`.", *(f"{note[0].upper()}{note[1:]}." for note in facts["notes"])]
    if facts["thought"] == "open":
        lines.append("A server's reply begins inside the thought: use its parser of reasoning.")
    if direct and facts["switch"]:
        lines.append(
            f"It was trained with the template's thinking off: `chat_template_kwargs: {{{facts['switch']}: false}}`."
        )
    elif direct and facts["thought"] == "open":
        lines.append("It was trained after a thought that was closed at once: end the prompt with `</think>`.")
    return [" ".join(lines), ""]


def _front_matter(dtype: str, environment: Mapping[str, Any]) -> list[str]:
    version = environment.get("packages", {}).get("transformers", "unknown")
    return [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [tagpr, personalization, grpo]",
        f"dtype: {dtype}", f"transformers_version: {json.dumps(version)}", "---", "",
    ]  # fmt: skip


def _shown(recipe: Recipe, name: str) -> Sequence[str]:
    """The stages of the lineage, and the stages whose output they used, in the recipe's order."""
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
    figures = ", ".join(f"{words(key)} {value:.4g}" for key, value in list(manifest.metrics.items())[:4])
    steps = (manifest.details.get("stopped") or {}).get("step", steps)
    return f"| {name} | {stage.kind} | {steps} | `{manifest.config_sha256[:16]}` | {figures} |"


def _scores(scores: Mapping[str, Mapping[str, Any]], whose: str) -> list[str]:
    lines: list[str] = []
    for stage, result in scores.items():
        lines += [f"Stage `{stage}`, {result['n']} questions of {whose}, mean task score {result['score']:.4f}."]
        lines += ["", "| task | metric | value | 95 % interval |", "|---|---|---|---|"]
        lines += [
            f"| {m['task']} | {m['name']} | {m['value']:.4f} | {m['low']:.4f} to {m['high']:.4f} |"
            for m in result.get("metrics", ())
        ]
        lines.append("")
    return lines


def evaluations(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The evaluation stages that evaluate the model of stage `name`."""
    return tuple(s for s, stage in recipe.stages.items() if isinstance(stage, EvaluateStage) and name in stage.models)


def prmu_card(recipe: Recipe, name: str, figures: Mapping[str, float]) -> str:
    """README.md of the stage's PRMU folder. `figures`: the metrics of prmu.accuracy.evaluate for this PRMU."""
    stage = recipe.stages[name]
    assert isinstance(stage, PrmuStage)
    data = "the embedded world" if recipe.data.lamp_dir is None else f"LaMP files ({', '.join(recipe.data.tasks)})"
    rows = [
        ("pairs of users that training shows, new questions", "seen/accuracy", "seen/user_macro"),
        ("pairs of users that training never shows", "unseen/accuracy", "unseen/user_macro"),
    ]
    controls = [
        ("without the user (e_0 only)", "unseen/generic"),
        ("written for another user's profile, scored for the right one", "unseen/cross_profile"),
        ("the same pairs, scored for a third user", "unseen/shuffled"),
    ]

    def shown(key: str) -> str:
        return f"{figures[key]:.3f}" if key in figures else "not measured"

    return "\n".join(
        [
            "---", "library_name: tagpr_rl", "tags: [reward-model, personalization]", "---", "",
            f"# {recipe.name}: reward model `{name}`",
            "",
            "Scores a response to a question for one user: head(h) + <proj(h), e_u> over a Hugging Face backbone. The "
            f"user is {_USERS[stage.user]}.",
            "",
            f"Backbone: {stage.backbone or f'the weights of stage `{stage.init}`'}. Data: {data}; "
            f"{figures.get('train/pairs', 0):.0f} training pairs, {figures.get('steps', 0):.0f} steps of "
            f"{stage.batch_size} pairs. Loss: {stage.individual_weight:g} x Bradley-Terry for the user + "
            f"{1 - stage.individual_weight:.3g} x Bradley-Terry for e_0 + {stage.centre:g} x squared sum of scores.",
            "",
            "| pairwise accuracy | over pairs | over users |",
            "|---|---|---|",
            *(f"| {label} | {shown(key)} | {shown(macro)} |" for label, key, macro in rows),
            *(f"| {label} | {shown(key)} | |" for label, key in controls),
            "",
            "Where training stopped early, it chose the weights by the unseen users' accuracy, which is then a little "
            "too high; `tagpr study prmu` measures on users that nothing was chosen on.",
            "",
            "## Use",
            "",
            "```python",
            "from pathlib import Path",
            "from tagpr_rl.prmu.serving.score import Scorer, ScoreRequest",
            'scorer = Scorer(Path("<this folder>"))',
            "scorer.score([ScoreRequest(user_id, profile_texts, question, response)])  # in [0, 1]",
            "```",
            "",
            f"0.5 is the mean raw score of the held-out pairs ({figures.get('score_mean', 0):.4g}), and one unit of "
            f"the logit their standard deviation ({figures.get('score_std', 1):.4g}). Unknown users and empty "
            "profiles are scored with e_0. Files: config.json, users.json, model.safetensors, backbone/, tokenizer/.",
            "",
        ]
    )  # fmt: skip
