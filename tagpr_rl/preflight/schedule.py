"""What a stage's keys promise and cannot keep: checkpoints, stop rules, alerts, saved responses, length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tagpr_rl.config import GrpoStage, TrainingStage, stage_limits
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.preflight.source import schema_of
from tagpr_rl.reward.components import COMPONENTS, TOTAL
from tagpr_rl.run.layout import tokens_file
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import ParseStatus, TagprError, did_you_mean

VERL_FAMILIES = (
    "actor",
    "critic",
    "timing_s",
    "timing_per_token_ms",
    "perf",
    "rollout_corr",
    "training",
    "response_length",
    "response",
    "prompt_length",
    "global_seqlen",
    "num_turns",
    "staleness",
    "rollout",
    "driver",
    "phase",
    "algo",
    "groups",
)
"""First words of the metrics whose names verl or the step's log choose."""
STATISTICS = ("mean", "std", "min", "max", "zero_variance")


def checkpoints(plan: PlannedRun) -> Iterator[Finding]:
    """`save_every` beyond the last step."""
    for name, stage in plan.stages(TrainingStage):
        if stage.save_every is not None and stage.save_every > stage.steps:
            kept = "nothing is saved" if stage.kind == "prmu" else "nothing is saved before the last step"
            yield Finding(
                f"stages.{name}.save_every",
                stage.save_every,
                f"{kept}: the stage has steps={stage.steps}, and an interrupted one starts over",
                f"save every {max(1, stage.steps // 5)} steps, or leave it out",
                True,
            )


def stop_rules(plan: PlannedRun) -> Iterator[Finding]:
    """A plateau of a metric that the stage does not log, or that cannot show before the last step."""
    for name, stage in plan.stages(GrpoStage):
        rule = stage.stop.plateau if stage.stop is not None else None
        if rule is None:
            continue
        if wrong := unlogged(plan, stage, rule.metric):
            yield Finding(f"stages.{name}.stop.plateau.metric", rule.metric, *wrong)
        if rule.window + rule.patience > stage.steps:
            yield Finding(
                f"stages.{name}.stop.plateau.patience",
                rule.patience,
                f"with window={rule.window} the rule can hold from step {rule.window + rule.patience} on, and steps is "
                f"{stage.steps}",
                "lower window and patience",
                True,
            )


def unlogged(plan: PlannedRun, stage: GrpoStage, metric: str) -> tuple[str, str] | None:
    """(what is wrong, remedy) if the stage's steps do not all log the metric; None if they do."""
    family, _, rest = metric.partition("/")
    first, _, last = rest.partition("/")
    components = [TOTAL, *COMPONENTS, *(name for term in stage.terms if term.fn for name in term.factors)]
    if not stage.uses_prmu:
        components.remove("prmu")
    schema = _schema(plan)
    known = {
        "reward": first in components and last in STATISTICS,
        "task": first in plan.recipe.data.tasks and last in ("mean", "responses", "malformed", *components),
        "tag": schema is None or (first in schema.names and last == "use"),
        "parse": rest == ParseStatus.OK.value,
        "prmu": stage.uses_prmu or rest.startswith("masked"),
    }
    if (family in VERL_FAMILIES and rest) or known.get(family, False):
        return None
    names = [f"reward/{key}/{what}" for key in components for what in STATISTICS]
    names += [f"task/{task}/mean" for task in plan.recipe.data.tasks]
    hint = did_you_mean(metric, names, otherwise=f"for example {names[0]} or reward/task/mean")
    if family == "parse" and rest in set(ParseStatus):
        hint = "steps without such a response do not log it; name parse/OK or task/<task>/malformed"
    return "the stage logs no such metric, and would stop at its first step", hint


def alerts(plan: PlannedRun) -> Iterator[Finding]:
    """Alerts that shall stop the stage and are switched off, or need more steps than there are."""
    limits = {"prmu_up_task_down": "prmu_rise", "entropy_collapse": "entropy_fraction"}
    for name, stage in plan.stages(GrpoStage):
        for kind in stage.alerts.abort_on:
            key = limits.get(kind, kind)
            if getattr(stage.alerts, key) is None:
                yield Finding(
                    f"stages.{name}.alerts.abort_on",
                    kind,
                    f"this alert is switched off (alerts.{key} is null)",
                    f"set alerts.{key}, or take it out of abort_on",
                )
            elif kind in ("prmu_up_task_down", "masked") and not stage.uses_prmu:
                yield Finding(
                    f"stages.{name}.alerts.abort_on",
                    kind,
                    "the stage has no PRMU score, so it is never raised",
                    "take it out, or give the reward a prmu term",
                    True,
                )
        if stage.alerts.abort_on and stage.alerts.window > stage.steps:
            yield Finding(
                f"stages.{name}.alerts.window",
                stage.alerts.window,
                f"the stage has steps={stage.steps}, so no window is ever full and abort_on stops nothing",
                "lower it",
                True,
            )


def saved_responses(plan: PlannedRun) -> Iterator[Finding]:
    """`rollouts_from`: a stage of another size, or a folder without the tokens of a step."""
    for name, stage in plan.stages(GrpoStage):
        source = stage.rollouts_from
        if source is None:
            continue
        key, other = f"stages.{name}.rollouts_from", plan.recipe.stages.get(source)
        if isinstance(other, GrpoStage):
            for size in ("prompts_per_step", "group_size"):
                if getattr(stage, size) != getattr(other, size):
                    yield Finding(
                        f"stages.{name}.{size}",
                        getattr(stage, size),
                        f"the saved responses of '{source}' come {getattr(other, size)} at a time",
                        "make them equal",
                    )
            if stage.steps > other.steps:
                yield Finding(
                    f"stages.{name}.steps",
                    stage.steps,
                    f"'{source}' saves the responses of {other.steps} steps",
                    f"use at most {other.steps}",
                )
        else:
            yield from _tokens(key, Path(source), stage)


def _tokens(key: str, folder: Path, stage: GrpoStage) -> Iterator[Finding]:
    """The first step's file that is missing or holds no tokens. Only the files' footers are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for step in range(1, min(stage.steps, 10_000) + 1):
        path = tokens_file(folder, step)
        try:
            names = set(pq.read_schema(path).names)
        except FileNotFoundError:
            yield Finding(
                key,
                folder,
                f"{path.name} is missing, and the stage trains on {stage.steps} steps",
                "name a `rollouts` folder of a stage that ran with save_tokens: true, or lower steps",
            )
            return
        except (OSError, pa.ArrowException) as error:
            yield Finding(key, folder, f"{path.name} cannot be read ({error})", "make it again")
            return
        if not {"prompt_ids", "response_ids", "logprobs"} <= names:
            yield Finding(key, folder, f"{path.name} holds no tokens", "make it again with save_tokens: true")
            return


def response_room(plan: PlannedRun) -> Iterator[Finding]:
    """A response limit below the shortest response that the tag schema accepts."""
    schema, recipe = _schema(plan), plan.recipe
    if schema is None or recipe.data.prompt.style == "official":
        return
    need = shortest_response(schema)
    limits = {f"stages.{n}.max_response_tokens": stage_limits(recipe, s)[1] for n, s in plan.stages(GrpoStage)}
    limits["data.prompt.max_response_tokens"] = recipe.data.prompt.max_response_tokens
    for key, limit in limits.items():
        own = key.startswith("data.") or limit < recipe.data.prompt.max_response_tokens
        if own and limit < need:
            yield Finding(
                key, limit, f"the shortest well-formed response of the tag schema has {need} tokens", "raise it"
            )


def shortest_response(schema: TagSchema) -> int:
    """Tokens of the shortest chain with all required tags, if every tag is one token: a tag, a word and a closing tag a
    step; `<think>`, `</think>`, and a word of answer."""
    return 3 * max(1, sum(least for _, least in schema.required)) + 3


def _schema(plan: PlannedRun) -> TagSchema | None:
    try:
        return schema_of(plan.recipe)
    except TagprError:  # its own check names it
        return None
