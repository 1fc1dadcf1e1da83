"""What a recipe will do, before it does it: stages, devices, batch arithmetic, verl overrides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagpr_rl.config import GrpoStage, PrmuStage, Recipe, SftStage, Stage
from tagpr_rl.paths import RunDir
from tagpr_rl.runstate import StageStatus, run_status, upstream

Overrides = Callable[[Recipe, RunDir, str], Sequence[str]]
"""(recipe, run, stage name) -> the stage's verl overrides, `key=value` each; empty for other kinds."""

_STYLE = {"done": "green", "todo": "cyan", "changed": "bold red"}


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Counts of one training stage. 0 or an empty list where a count has no meaning for the kind."""

    updates: int
    """Optimizer updates in the whole stage."""
    samples_per_step: int
    """Sequences per training step: responses (GRPO), chains (SFT) or pairs (PRMU)."""
    mini_batch: int = 0
    """Responses per optimizer update, over all devices."""
    micro_batches: int = 0
    """Forward passes per update and device."""
    generated_tokens: int = 0
    """Upper bound of the tokens that rollouts generate in the whole stage."""
    trained_tokens: int = 0
    """Upper bound of the tokens (prompt and response) in the sequences trained on."""
    problems: tuple[str, ...] = field(default=())
    """Counts that do not divide as the engine needs."""


def devices(recipe: Recipe) -> int:
    """Training processes in all: nodes times devices per node."""
    return recipe.platform.nodes * recipe.platform.devices_per_node


def batch_plan(recipe: Recipe, stage: Stage) -> BatchPlan | None:
    """Batch arithmetic of a training stage; None for stages that do not train."""
    length = recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens
    if isinstance(stage, SftStage):
        problems = _divides(stage.batch_size, devices(recipe), "batch_size", "devices")
        return BatchPlan(
            stage.steps,
            stage.batch_size,
            trained_tokens=stage.steps * stage.batch_size * length,
            problems=problems,
        )
    if isinstance(stage, PrmuStage):
        # A pair is two sequences.
        return BatchPlan(stage.steps, stage.batch_size, trained_tokens=2 * stage.steps * stage.batch_size * length)
    if isinstance(stage, GrpoStage):
        responses = stage.prompts_per_step * stage.group_size
        mini = responses // stage.mini_batches
        unit = devices(recipe) * stage.micro_batch_size
        return BatchPlan(
            updates=stage.steps * stage.mini_batches,
            samples_per_step=responses,
            mini_batch=mini,
            micro_batches=-(-mini // unit),
            generated_tokens=stage.steps * responses * recipe.data.prompt.max_response_tokens,
            trained_tokens=stage.steps * responses * length,
            problems=_divides(stage.prompts_per_step, stage.mini_batches, "prompts_per_step", "mini_batches")
            + _divides(mini, unit, "responses per update", "devices * micro_batch_size"),
        )
    return None


def _divides(whole: int, part: int, whole_name: str, part_name: str) -> tuple[str, ...]:
    return () if whole % part == 0 else (f"{whole_name} = {whole} is not a multiple of {part_name} = {part}",)


def status_table(recipe: Recipe, statuses: Sequence[StageStatus]) -> Table:
    """Stage, kind, the stages it reads, and its state."""
    table = Table("stage", "kind", "reads", "state")
    for status in statuses:
        colour = _STYLE[status.status]
        reads = ", ".join(upstream(recipe, status.name)) or "-"
        table.add_row(status.name, status.kind, reads, f"[{colour}]{status.status}[/{colour}]")
    return table


def print_status(recipe: Recipe, run: RunDir, console: Console) -> dict[str, StageStatus]:
    """Print the state of every stage of the run; returns it as well."""
    statuses = run_status(recipe, run)
    console.print(f"run {run.root}", highlight=False)
    console.print(status_table(recipe, list(statuses.values())))
    for status in statuses.values():
        for reason in status.reasons:
            console.print(f"  {status.name}: {escape(reason)}", highlight=False)
    return statuses


def print_plan(recipe: Recipe, run: RunDir, console: Console, overrides: Overrides) -> None:
    """Print stages and their state, devices, batch arithmetic and the resolved verl overrides."""
    print_status(recipe, run, console)
    platform = recipe.platform
    source = str(recipe.data.lamp_dir) if recipe.data.lamp_dir is not None else "embedded world"
    model = str(recipe.model.path) if recipe.model.path is not None else "tiny model, built here"
    facts = Table("what", "value", show_header=False)
    facts.add_row("device", platform.device)
    facts.add_row("devices", f"{platform.nodes} node(s) x {platform.devices_per_node} = {devices(recipe)} process(es)")
    facts.add_row("Ray", platform.ray_address or "a private local cluster")
    facts.add_row("data", escape(f"{source}; {', '.join(recipe.data.tasks)}; split by {recipe.data.split}"))
    facts.add_row("model", escape(f"{model}; {recipe.model.dtype}"))
    limits = recipe.data.prompt
    facts.add_row("sequence", f"prompt <= {limits.max_tokens}, response <= {limits.max_response_tokens} tokens")
    console.print(facts)
    console.print(batch_table(recipe))
    for name, stage in recipe.stages.items():
        plan = batch_plan(recipe, stage)
        for problem in plan.problems if plan else ():
            console.print(f"[bold red]stages.{name}: {escape(problem)}[/bold red]")
    for name in recipe.stages:
        lines = overrides(recipe, run, name)
        if lines:
            console.print(f"\nverl overrides of stage '{name}':", highlight=False)
            console.print("\n".join(f"  {line}" for line in lines), markup=False, highlight=False, soft_wrap=True)


def batch_table(recipe: Recipe) -> Table:
    """One row per training stage; token counts are upper bounds."""
    table = Table("trains", "steps", "per step", "updates", "mini x micro", "tokens generated", "trained on")
    for name, stage in recipe.stages.items():
        plan = batch_plan(recipe, stage)
        if plan is None:
            continue
        per_step, split, generated, steps = f"{plan.samples_per_step}", "-", "-", plan.updates
        if isinstance(stage, GrpoStage):
            per_step = f"{stage.prompts_per_step} x {stage.group_size} = {plan.samples_per_step}"
            split = f"{plan.mini_batch} = {plan.micro_batches} x {stage.micro_batch_size}"
            generated, steps = f"{plan.generated_tokens:,}", stage.steps
        table.add_row(name, str(steps), per_step, str(plan.updates), split, generated, f"{plan.trained_tokens:,}")
    return table
