"""The user's own reward functions: imported, and tried on two responses."""

from __future__ import annotations

from collections.abc import Iterator

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.preflight.source import schema_of
from tagpr_rl.reward.components import Component, load_components, value_of
from tagpr_rl.reward.response import read_response
from tagpr_rl.types import TagprError


def own_rewards(plan: PlannedRun) -> Iterator[Finding]:
    """The user's own reward functions, which are imported and tried."""
    for name, stage in plan.stages(GrpoStage):
        key = f"stages.{name}.reward"
        try:
            components = load_components(stage.terms)
        except TagprError as error:
            yield Finding(key, None, str(error))
            continue
        except Exception as error:  # noqa: BLE001  # of the user's module
            yield Finding(key, None, f"importing it fails: {type(error).__name__}: {error}", "mend the module")
            continue
        for component in components:
            if component.source and (wrong := _trial(plan.recipe, component)):
                yield Finding(key, component.source, wrong, "mend the function")


def _trial(recipe: Recipe, component: Component) -> str:
    """What a user's function does wrong with a malformed and a well-formed response; "" if it does nothing wrong."""
    try:
        own = schema_of(recipe)
    except TagprError:
        return ""  # its own check names it
    steps = "".join(f"<{name}>a step</{name}>" for name in own.names)
    for what, text in (("malformed", "<think>"), ("well-formed", f"<think>{steps}</think>1")):
        response = read_response(text, own, task=recipe.data.tasks[0], gold="1")
        try:
            value_of(component, response)
        except TagprError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # of the user's function
            return f"it raises {type(error).__name__} ({error}) on a {what} response"
    return ""
