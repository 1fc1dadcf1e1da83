"""What a recipe will do, before it does it: stages, devices, batch arithmetic, verl overrides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagpr_rl.config import GrpoStage, PrmuStage, Recipe, SftStage, StageBase, stage_limits, upstream
from tagpr_rl.plan.host import downloads, stage_disks
from tagpr_rl.plan.hours import DECODE_EFFICIENCY, MFU
from tagpr_rl.plan.memory import GIB, RESERVE_GIB, Part, device_of, policy_shape
from tagpr_rl.plan.stages import StageBudget, stage_budget
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.state import run_status
from tagpr_rl.types import TagprError

Overrides = Callable[[Recipe, RunDir, str], Sequence[str]]
"""(recipe, run, stage name) -> the stage's verl overrides, `key=value` each; empty for other kinds."""

_STYLE = {"done": "green", "todo": "cyan", "changed": "bold red"}


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Counts of one training stage; 0 if a count has no meaning for the kind."""

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
    problems: tuple[str, ...] = ()
    """Counts that do not divide as the engine needs."""


def batch_plan(recipe: Recipe, stage: StageBase) -> BatchPlan | None:
    """Batch arithmetic of a training stage; None for stages that do not train."""
    length = recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens
    if isinstance(stage, SftStage):
        problems = _divides(stage.batch_size, recipe.platform.devices, "batch_size", "devices")
        trained = stage.steps * stage.batch_size * length
        return BatchPlan(stage.steps, stage.batch_size, trained_tokens=trained, problems=problems)
    if isinstance(stage, PrmuStage):
        # A pair is two sequences.
        return BatchPlan(stage.steps, stage.batch_size, trained_tokens=2 * stage.steps * stage.batch_size * length)
    if isinstance(stage, GrpoStage):
        length = sum(stage_limits(recipe, stage))
        responses = stage.prompts_per_step * stage.group_size
        mini = responses // stage.mini_batches
        tokens, each = recipe.training.max_tokens_per_device, stage.micro_batch_size
        count = -(-mini // (recipe.platform.devices * each))
        if tokens is not None:  # verl fills micro-batches by tokens; only the devices must divide
            each = 1
            count = -(-mini * length // (recipe.platform.devices * tokens))
        return BatchPlan(
            updates=stage.steps * stage.mini_batches,
            samples_per_step=responses,
            mini_batch=mini,
            micro_batches=count,
            generated_tokens=stage.steps * responses * stage_limits(recipe, stage)[1],
            trained_tokens=stage.steps * responses * length,
            problems=_divides(stage.prompts_per_step, stage.mini_batches, "prompts_per_step", "mini_batches")
            + _divides(mini, recipe.platform.devices * each, "responses per update", "devices * micro_batch_size"),
        )
    return None


def _divides(whole: int, part: int, whole_name: str, part_name: str) -> tuple[str, ...]:
    return () if whole % part == 0 else (f"{whole_name} = {whole} is not a multiple of {part_name} = {part}",)


def stages_table(recipe: Recipe, run: RunDir) -> Table:
    """Stage, kind, the stages it reads, and its state; below, why a finished stage no longer fits the recipe."""
    table = Table("stage", "kind", "reads", "state")
    for name, status in run_status(recipe, run).items():
        colour = _STYLE[status.status]
        state = f"[{colour}]{status.status}[/{colour}]" + "".join(f"\n{escape(reason)}" for reason in status.reasons)
        table.add_row(name, status.kind, ", ".join(upstream(recipe, name)) or "-", state)
    return table


def problems(recipe: Recipe) -> list[str]:
    """Everything that keeps the recipe from running on its devices: batches that do not divide, memory, names."""
    mistakes: list[str] = []
    for name, stage in recipe.stages.items():
        plan = batch_plan(recipe, stage)
        mistakes += [f"stages.{name}: {problem}" for problem in plan.problems] if plan else []
    try:
        for name in recipe.stages:
            budget = stage_budget(recipe, name)
            mistakes += budget.problems if budget else ()
    except TagprError as error:
        mistakes.append(str(error))
    return mistakes


def print_plan(
    recipe: Recipe, run: RunDir, console: Console, overrides: Overrides | None = None, *, formulas: bool = False
) -> None:
    """Print stages and their state, devices, batch arithmetic, memory and hours; with `overrides` also verl's keys.

    `formulas`: the memory of each part and its formula, and the arithmetic of the hours, in place of their sums. What
    is wrong with the recipe is said by preflight, and in one line by `verdict`.
    """
    console.print(f"run {run.root}", highlight=False, soft_wrap=True)
    for name in recipe.stages:
        if overrides is not None and (lines := overrides(recipe, run, name)):
            console.print(f"\nverl overrides of stage '{name}':", highlight=False)
            console.print("\n".join(f"  {line}" for line in lines), markup=False, highlight=False, soft_wrap=True)
    console.print(stages_table(recipe, run))
    source = str(recipe.data.lamp_dir) if recipe.data.lamp_dir is not None else "embedded world"
    model = str(recipe.model.path) if recipe.model.path is not None else "tiny model, built here"
    limits = recipe.data.prompt
    facts = Table("what", "value", show_header=False)
    facts.add_row("device", recipe.platform.device)
    facts.add_row("devices", devices_text(recipe))
    facts.add_row("Ray", recipe.platform.ray_address or "a private local cluster")
    facts.add_row("data", escape(f"{source}; {', '.join(recipe.data.tasks)}; split by {recipe.data.split}"))
    facts.add_row("model", escape(f"{model}; {recipe.model.dtype}"))
    facts.add_row("sequence", f"prompt <= {limits.max_tokens}, response <= {limits.max_response_tokens} tokens")
    console.print(facts)
    console.print(batch_table(recipe))
    print_budgets(recipe, console, formulas=formulas)


def verdict(recipe: Recipe) -> str:
    """One line for a recipe without `problems`: that it fits, the fullest device, the hours."""
    budgets, device = stage_budgets(recipe), device_of(recipe.budget)
    phases = [(phase.bytes, name, phase.name) for name, budget in budgets.items() for phase in budget.phases]
    memory = "memory: not known for this model"
    if phases:
        most, stage, phase = max(phases)
        room = f" of {device.memory_gib - RESERVE_GIB:.1f}" if device is not None else ""
        memory = f"at most {most / GIB:.1f}{room} GiB per device (stage {stage}, {phase})"
    host = max((budget.host_bytes for budget in budgets.values()), default=0.0)
    memory += f", {_gib(host)} GiB of a node's host" if host else ""
    memory += "" if device is not None else ", not checked against a device (budget.device names one)"
    seconds = sum(seconds for budget in budgets.values() for _, seconds, _ in budget.seconds)
    hours = f"about {seconds / 3600:.1f} hours" if seconds else "hours: not estimated"
    return f"fits: batches divide; {memory}; {hours}"


def stage_budgets(recipe: Recipe) -> dict[str, StageBudget]:
    """Stage -> memory and time, of the stages that use devices and whose model is known. TagprError: unknown device."""
    budgets = {name: stage_budget(recipe, name) for name in recipe.stages}
    return {name: budget for name, budget in budgets.items() if budget is not None}


def devices_text(recipe: Recipe) -> str:
    """The policy's devices, and those beside them."""
    platform, own = recipe.platform, recipe.placement
    text = f"{platform.nodes} node(s) x {platform.devices_per_node} = {recipe.platform.devices} process(es)"
    if own.rollout == "separate":
        count = own.rollout_nodes * own.rollout_devices_per_node
        text += f"; rollout on {own.rollout_nodes} x {own.rollout_devices_per_node} = {count} more"
    text += f"; tensor parallel {own.tensor_parallel}" if own.tensor_parallel > 1 else ""
    text += f"; PRMU {own.prmu}" if any(isinstance(stage, PrmuStage) for stage in recipe.stages.values()) else ""
    return text + (f" ({own.prmu_devices:g} of a device more)" if own.prmu == "dedicated" else "")


def print_budgets(recipe: Recipe, console: Console, *, formulas: bool) -> None:
    """Print memory per device, host memory, disk and hours of every stage; nothing when the model is unknown."""
    try:
        budgets = stage_budgets(recipe)
        device, shape = device_of(recipe.budget), policy_shape(recipe)
    except TagprError:  # `problems` has its message
        return
    if shape is None:
        console.print(f"memory: the shape of model.path={recipe.model.path} is not known here; give a local folder")
        return
    console.print(f"\nmodel {escape(shape.name)}: {shape.parameters:,} parameters", highlight=False)
    if device is not None:
        console.print(
            f"device {escape(str(recipe.budget.device))}: {device.memory_gib:g} GiB, {device.bf16_tflops:g} TFLOPS "
            f"bf16, {device.bandwidth_gbps:g} GB/s ({escape(device.source)}); "
            f"{RESERVE_GIB:g} GiB reserved",
            highlight=False,
        )
    console.print(formula_table(budgets) if formulas else memory_table(budgets))
    console.print(node_table(recipe, budgets, formulas=formulas))
    if any(budget.seconds for budget in budgets.values()):
        console.print(hours_table(budgets) if formulas else hours_line(budgets), highlight=False)
        console.print(
            f"hours assume MFU {MFU:g} in training and prefill, {DECODE_EFFICIENCY:g} of the bandwidth "
            "in decoding, sequences as long as the limit, and nothing at once; start-up and saving are not "
            "counted",
            highlight=False,
        )
    elif recipe.platform.device == "cuda":
        console.print("hours: name budget.device to estimate them", highlight=False)


def memory_table(budgets: Mapping[str, StageBudget]) -> Table:
    """One row per phase of each stage: the sum, and the three largest parts."""
    table = Table("stage", "while it", "GiB per device", "of which, at most")
    for name, budget in budgets.items():
        for phase in budget.phases:
            table.add_row(name, phase.name, f"{phase.bytes / GIB:.3g}", _largest(phase.parts))
    return table


def _largest(parts: Sequence[Part]) -> str:
    """The three largest parts, in GiB."""
    largest = sorted(parts, key=lambda part: -part.bytes)[:3]
    return ", ".join(f"{part.name} {_gib(part.bytes)}" for part in largest)


def _gib(count: float) -> str:
    """Bytes in GiB, three digits or all before the point."""
    return f"{count / GIB:,.0f}" if count >= 1000 * GIB else f"{count / GIB:.3g}"


def node_table(recipe: Recipe, budgets: Mapping[str, StageBudget], *, formulas: bool) -> Table:
    """One row per stage: host memory of the fullest node at its fullest, and what the stage leaves below `out`, which
    all nodes share. `formulas`: a row for each part."""
    table = Table("stage", "of a node", "GiB", "each" if formulas else "of which, at most")
    disks = stage_disks(recipe, recipe.stages)
    for name, budget in budgets.items():
        fullest = max(budget.host, key=lambda phase: phase.bytes)
        rows = [(f"host memory ({fullest.name})", fullest.bytes, fullest.parts)]
        if disk := disks.get(name):
            writing = (Part("being written", disk.writing, "a checkpoint"),) if disk.writing else ()
            rows.append(("disk of `out`", disk.bytes + disk.writing, (*disk.parts, *writing)))
        for what, total, parts in rows:
            shown = "\n".join(f"{part.name} {_gib(part.bytes)}: {escape(part.formula)}" for part in parts)
            table.add_row(name, what, _gib(total), shown if formulas else _largest(parts))
    if fetched := downloads(recipe):
        shown = ", ".join(f"{part.name} {_gib(part.bytes)}: {part.formula}" for part in fetched)
        table.add_row("all", "disk of the hub's cache", _gib(sum(part.bytes for part in fetched)), escape(shown))
    for column in table.columns:
        column.overflow = "fold"
    return table


def formula_table(budgets: Mapping[str, StageBudget]) -> Table:
    """One row per part of each stage's phases, with its formula; the sum at the end of each."""
    table = Table("stage", "while it", "part", "GiB", "per device")
    for name, budget in budgets.items():
        for phase in budget.phases:
            for part in phase.parts:
                table.add_row(name, phase.name, part.name, f"{part.bytes / GIB:.3g}", escape(part.formula))
            table.add_row(name, phase.name, "[bold]sum[/bold]", f"[bold]{phase.bytes / GIB:.3g}[/bold]", "")
    for column in table.columns:
        column.overflow = "fold"
    return table


def hours_line(budgets: Mapping[str, StageBudget]) -> str:
    """Hours of each stage and of all."""
    hours = {name: sum(seconds for _, seconds, _ in budget.seconds) / 3600 for name, budget in budgets.items()}
    each = ", ".join(f"{name} {value:.2f}" for name, value in hours.items() if value)
    return f"hours: {each}; together {sum(hours.values()):.2f}"


def hours_table(budgets: Mapping[str, StageBudget]) -> Table:
    """One row per part of each stage's time, and the sum of all."""
    table = Table("stage", "time for", "hours", "arithmetic")
    total = 0.0
    for name, budget in budgets.items():
        for what, seconds, rule in budget.seconds:
            total += seconds
            table.add_row(name, what, f"{seconds / 3600:.2f}", escape(rule))
    table.add_row("all", "", f"[bold]{total / 3600:.2f}[/bold]", "")
    return table


def batch_table(recipe: Recipe) -> Table:
    """One row per training stage; token counts are upper bounds."""
    table = Table("trains", "steps", "per step", "updates", "mini x micro", "generated", "trained on")
    for name, stage in recipe.stages.items():
        plan = batch_plan(recipe, stage)
        if plan is None:
            continue
        per_step, split, generated, steps = f"{plan.samples_per_step}", "-", "-", plan.updates
        if isinstance(stage, GrpoStage):
            per_step = f"{stage.prompts_per_step} x {stage.group_size} = {plan.samples_per_step}"
            size = recipe.training.max_tokens_per_device
            each = f"{stage.micro_batch_size}" if size is None else f"{size:,} tokens"
            split = f"{plan.mini_batch} = {plan.micro_batches} x {each}"
            generated, steps = _tokens(plan.generated_tokens), stage.steps
        table.add_row(name, str(steps), per_step, str(plan.updates), split, generated, _tokens(plan.trained_tokens))
    for column in table.columns:
        column.overflow = "fold"
    return table


def _tokens(count: int) -> str:
    """A number of tokens in three digits: `577 M`."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
