"""The curated view of a run: sections of line panels, each a title and the names of logged metrics. Plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tagpr_rl.reward.components import TOTAL, needs_prmu


@dataclass(frozen=True, slots=True)
class Panel:
    """A line plot over the run's global step."""

    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A named row of panels."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What decides which metrics a GRPO stage logs."""

    name: str
    components: tuple[str, ...]
    """Its reward components."""
    prmu: bool
    kl: bool
    gap: bool
    """Whether the rollout's and the actor's probabilities are compared."""
    entropy: str
    """Its key: verl's `actor/entropy` if old log-probabilities are computed, else `actor/entropy_loss`."""
    validated: bool = False


def sections(stages: Sequence[StageFacts], tasks: Sequence[str], tags: Sequence[str]) -> list[Section]:
    """The view of a run with these GRPO stages: the same for everybody who looks at it.

    Args:
        stages: the recipe's GRPO stages, in order.
        tasks: LaMP tasks.
        tags: the schema's tags.
    """
    view = [
        Section("Reward composition", tuple(_reward_panels(stages))),
        Section("By task", tuple(_panel(stages, task, f"task/{task}/mean", f"task/{task}/total") for task in tasks)),
        Section("By tag", tuple(_panel(stages, tag, f"tag/{tag}/use") for tag in tags)),
        Section("Health", tuple(_health_panels(stages))),
        Section("Throughput", tuple(_time_panels(stages))),
    ]
    with_prmu = [stage for stage in stages if stage.prmu]
    if with_prmu:
        names = ("prmu/task_correlation", "prmu/masked_fraction", "prmu/wait_fraction", "prmu/seconds/max")
        titles = ("PRMU against task (Pearson)", "Unscored responses", "Wait for scores", "Slowest score (s)")
        panels = [_panel(with_prmu, title, name) for title, name in zip(titles, names, strict=True)]
        panels.insert(0, _panel(with_prmu, "PRMU beside task", "reward/prmu/mean", "reward/task/mean"))
        view.append(Section("PRMU", tuple(panels)))
    return view


def _panel(stages: Sequence[StageFacts], title: str, *keys: str) -> Panel:
    return Panel(title, tuple(f"{stage.name}/{key}" for key in keys for stage in stages))


def _reward_panels(stages: Sequence[StageFacts]) -> Iterator[Panel]:
    names = dict.fromkeys(name for stage in stages for name in stage.components)
    for key in (TOTAL, *names):
        measured = [s for s in stages if key == TOTAL or (key in s.components and (s.prmu or not needs_prmu(key)))]
        if measured:
            yield _panel(measured, f"{key}: mean", f"reward/{key}/mean")
    if validated := [stage for stage in stages if stage.validated]:
        yield _panel(validated, "Validation", "validation/score", "validation/low", "validation/high")
    yield _panel(stages, "Groups in which the reward is equal", "groups/zero_variance_fraction")


def _health_panels(stages: Sequence[StageFacts]) -> Iterator[Panel]:
    yield Panel("Entropy", tuple(f"{stage.name}/{stage.entropy}" for stage in stages))
    yield _panel(stages, "KL of the update (ppo_kl)", "actor/ppo_kl")
    if with_kl := [stage for stage in stages if stage.kl]:
        yield _panel(with_kl, "KL to the stage's start", "actor/kl_loss")
    yield _panel(stages, "Clipped share", "actor/pg_clipfrac", "actor/pg_clipfrac_lower")
    yield _panel(stages, "Gradient norm", "actor/grad_norm")
    if with_gap := [stage for stage in stages if stage.gap]:
        yield _panel(with_gap, "Rollout against actor, largest gap", "training/rollout_probs_diff_max")
    yield _panel(stages, "Responses that parse", "parse/OK")
    yield _panel(stages, "Response length", "response_length/mean", "response_length/max")
    yield _panel(stages, "Staleness", "staleness/mean")
    yield _panel(stages, "Responses that failed, or were asked for again", "rollout/failed", "rollout/retried")


def _time_panels(stages: Sequence[StageFacts]) -> Iterator[Panel]:
    yield _panel(stages, "Seconds a step", "timing_s/step")
    yield _panel(stages, "Tokens a second and device", "perf/throughput")
    names = ("generation", "update_actor", "weight_sync")
    yield _panel(stages, "Shares of the step", *(f"phase/{name}_share" for name in names))
    yield _panel(stages, "Driver only and the logging hook, shares", "driver/share", "driver/hook_share")


def as_json(view: Sequence[Section]) -> list[dict[str, Any]]:
    """As plain JSON."""
    return [asdict(section) for section in view]
