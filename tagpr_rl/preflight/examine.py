"""All checks of a planned run, and what `plan`, `run`, `resume` and `sweep` do with what they find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from tagpr_rl.config import Recipe
from tagpr_rl.plan.show import problems
from tagpr_rl.preflight import folder, machine, numbers, rewards, schedule, services, source
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.state import run_status
from tagpr_rl.types import TagprError

Check = Callable[[PlannedRun], Iterable[Finding]]


def batches_and_memory(plan: PlannedRun) -> Iterator[Finding]:
    """Batches that do not divide, and memory that does not fit the named device."""
    for text in problems(plan.recipe):
        yield Finding("", None, text)


CHECKS: tuple[Check, ...] = (
    numbers.numbers,
    numbers.learning_rates,
    numbers.sizes,
    numbers.lengths,
    numbers.time_limits,
    numbers.switched_off,
    batches_and_memory,
    schedule.checkpoints,
    schedule.stop_rules,
    schedule.alerts,
    schedule.saved_responses,
    schedule.response_room,
    source.schema,
    source.questions,
    source.templates,
    source.rankings,
    rewards.own_rewards,
    folder.models,
    machine.devices,
    machine.packages,
    machine.folders,
    machine.disk,
    machine.memory,
    machine.cluster,
    services.keys,
    services.language_models,
    services.ray,
    services.mirror,
    services.other_run,
)
"""Each looks at one subject, takes seconds at most and starts nothing. One that raises has a defect: what is wrong with
the user's files is a finding."""


def planned(
    recipe: Recipe, run: RunDir, until: str | None = None, *, only: Collection[str] | None = None, fresh: bool = False
) -> PlannedRun:
    """The run with its stages still to do, up to `until` and among `only`; all of them if it starts `fresh`.

    TagprError on a damaged manifest.
    """
    states = run_status(recipe, run, until=until)
    todo = (name for name, state in states.items() if fresh or state.status != "done")
    return PlannedRun(recipe, run, tuple(name for name in todo if only is None or name in only))


def examine(plan: PlannedRun, *, here: bool = True) -> list[Finding]:
    """Everything that is wrong with a run, mistakes first. Nothing if no stage is left to do.

    `here`: the run starts on this machine. Otherwise what depends on the machine is a warning.
    """
    if not plan.todo:
        return []
    found = [finding for check in CHECKS for finding in check(plan)]
    if not here:
        found = [replace(finding, warning=True) if finding.on_machine else finding for finding in found]
    unique = list({str(finding): finding for finding in found}.values())
    return sorted(unique, key=lambda finding: finding.warning)


def lines(found: Sequence[Finding], *, warnings: bool) -> list[str]:
    """The mistakes, or the warnings, a line each."""
    return [
        f"{'on this machine: ' if finding.on_machine and warnings else ''}{finding}"
        for finding in found
        if finding.warning is warnings
    ]


def require_ready(plan: PlannedRun, say: Callable[[str], None], *, here: bool = True) -> None:
    """Say every warning and raise TagprError with every mistake."""
    found = examine(plan, here=here)
    for line in lines(found, warnings=True):
        say(f"warning: {line}")
    if mistakes := lines(found, warnings=False):
        raise TagprError(refusal(mistakes))


def refusal(mistakes: Collection[str]) -> str:
    """The message of a run that cannot start."""
    return f"the plan has {len(mistakes)} mistake(s):\n  " + "\n  ".join(mistakes) + "\nnothing was started"
