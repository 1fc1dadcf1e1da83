"""Hops 7 to 9 of the walk: the update, the published weights, the report."""

from __future__ import annotations

from collections.abc import Sequence

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.report.page.html import build_report
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.run.layout import RunDir

OWN_FILES = {
    "data": ("data.json",),
    "prompts": ("prompts.json",),
    "chains": ("chains.json",),
    "sft": ("metrics.jsonl",),
    "prmu": ("prmu.json", "metrics.jsonl"),
    "grpo": ("metrics.jsonl", "rollouts/step_*.jsonl"),
    "evaluate": ("eval.json", "responses/*.jsonl"),
}
"""What the report reads of a stage's folder beside its manifest, by the stage's kind."""


def update(page: Page, stages: Sequence[tuple[str, GrpoStage]], max_response_tokens: int) -> None:
    """Hop 7: the loss that verl minimises, with each stage's settings."""
    page.hop_in_source(
        7,
        "tagpr_rl.backend.trainer.overrides",
        "grpo_overrides",
        "These settings go to verl, which makes the update. Every token of a response carries the response's "
        "advantage; the ratio's clip keeps each step small. The loss is verl 0.9.1's compute_policy_loss_vanilla "
        "(verl/trainer/ppo/core_algos.py).",
    )
    page.say(
        "ratio_t = pi_new(token_t) / pi_old(token_t)\n"
        "clip_t  = ratio_t kept within [1 - clip_low, 1 + clip_high]\n"
        "loss    = - mean over tokens of min(ratio_t * A, clip_t * A)\n"
        "          (for A < 0 at most 3 |A| a token: verl's dual clip)\n"
        "          + kl_coef * KL(policy || the stage's start policy)"
    )
    for name, stage in stages:
        page.block(name, "\n".join(update_lines(stage, max_response_tokens)))


def update_lines(stage: GrpoStage, max_response_tokens: int) -> list[str]:
    """What one stage sets of the update."""
    batch = stage.prompts_per_step * stage.group_size
    lines = [
        f"one step: {stage.prompts_per_step} prompts x {stage.group_size} responses = {batch}, at most "
        f"{max_response_tokens} tokens each, in {stage.mini_batches} update(s) of {batch // stage.mini_batches}; "
        f"{stage.steps} steps",
        f"clip: the ratio counts within [{1 - stage.clip_low:g}, {1 + stage.clip_high:g}]; averaged by "
        f"{stage.loss_agg}; AdamW, lr {stage.lr:g}; gradient norm at most {stage.max_grad_norm:g}",
        f"kl_coef = {stage.kl_coef:g}" + ("" if stage.kl_coef else ": no KL term and no reference model"),
    ]
    if stage.loss == "gspo":
        lines.append("loss: gspo; ratio_t is the whole response's, exp(mean over its tokens of log ratio_t)")
    if stage.uses_prmu:
        lines.append(f"a response without a PRMU score after {stage.prmu_timeout_s:g} s is masked out of the update")
    return lines


def publish(page: Page, recipe: Recipe, run: RunDir) -> None:
    """Hop 8: where each stage puts its weights."""
    page.hop_in_source(
        8,
        "tagpr_rl.stages.common",
        "publish",
        "After its last step a stage writes its weights and tokenizer for the next stage, then its manifest. Weights "
        "only: optimizer, schedule, data order and reference policy start afresh.",
    )
    lines = []
    for index, (name, stage) in enumerate(recipe.stages.items()):
        if stage.kind in ("model", "sft", "grpo", "prmu"):
            init = getattr(stage, "init", None)
            start = f"starts from {init}" if init else "start weights"
            folder = run.stage(index, name)
            lines.append(f"{name:<10} {start:<22} -> {folder.root if stage.kind == 'prmu' else folder.hf}")
    page.block("out", "\n".join(lines))


def report(page: Page, recipe: Recipe, run: RunDir) -> None:
    """Hop 9: which files the report is made of."""
    page.hop(9, build_report, "The evaluation on held-out users and every stage's files become one page.")
    lines = []
    for index, (name, stage) in enumerate(recipe.stages.items()):
        files = ", ".join(("manifest.json", *OWN_FILES.get(stage.kind, ())))
        lines.append(f"{run.stage(index, name).root.name}/: {files}")
    page.block(f"in: {run.root}/", "\n".join(lines))
    page.block("out", f"{run.report_json} (numbers, samples) and {run.report_html} (tables, plots, coloured chains)")
