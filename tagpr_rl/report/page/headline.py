"""What a run's evaluation comes to: the last model beside the model that RL started from and beside the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tagpr_rl.config import GrpoStage, ModelStage, Recipe, SftStage, answers_directly
from tagpr_rl.eval.metrics import paired_difference
from tagpr_rl.report.cards.model_card import lineage
from tagpr_rl.report.page.names import BASELINES, BOUNDS, CONTROLS, HELD_OUT, PROMPTS, SFT_DATA, TERMS
from tagpr_rl.report.page.read import Row
from tagpr_rl.reward.components import Term


def roles(recipe: Recipe, models: Iterable[str]) -> dict[str, str | None]:
    """The evaluated models that the headline speaks of; None if there is no such model.

    final: the last GRPO stage of the recipe, else the last SFT on chains, else the last model. start: the model that RL
    of `final` started from.
    base: the first model in the lineage of `final`, if it is neither of the two.
    """
    evaluated = [name for name in models if name in recipe.stages]
    trained = [name for name, stage in recipe.stages.items() if isinstance(stage, GrpoStage) and name in evaluated]
    if not evaluated:
        return {"final": None, "start": None, "base": None}
    imitated = [name for name in evaluated if isinstance(recipe.stages[name], SftStage)]
    imitated = [name for name in imitated if not answers_directly(recipe, name)]
    final = (trained or imitated or evaluated)[-1]
    line = lineage(recipe, final)
    before = [name for name in line if not isinstance(recipe.stages[name], GrpoStage)]
    start = before[-1] if final in trained and before and before[-1] in evaluated else None
    base = next((name for name in line if name in evaluated and name not in (start, final)), None)
    base = None if base is None or isinstance(recipe.stages[base], GrpoStage) else base
    return {"final": final, "start": start, "base": base}


def rank(recipe: Recipe, final: str | None) -> str:
    """What the headline calls the model: final only if the recipe trains none from it."""
    after = any(
        getattr(stage, "init", None) == final and isinstance(stage, GrpoStage) for stage in recipe.stages.values()
    )
    return "the last model evaluated so far" if after else "the final model"


def difference(a: Row, b: Row) -> dict[str, Any] | None:
    """b - a on the questions that both answered, with the interval over users; `a`, `b`: EvalResult.as_dict.

    None if they have no question in common.
    """
    first, second = ({str(q["key"]): q for q in entry.get("questions") or []} for entry in (a, b))
    keys = [key for key in first if key in second]
    if not keys:
        return None
    before, after = ({key: float(table[key]["score"]) for key in keys} for table in (first, second))
    users, tasks = ({key: str(first[key][what]) for key in keys} for what in ("user_id", "task"))
    value, low, high = paired_difference(after, before, users, tasks=tasks)
    return {"difference": value, "low": low, "high": high, "questions": len(keys)}


def gains(who: Mapping[str, str | None], models: Mapping[str, Row]) -> list[dict[str, Any]]:
    """The paired differences of the headline: what RL added, and what all training added."""
    rows = []
    for what, key in (("rl", "start"), ("all", "base")):
        a, b = who[key], who["final"]
        found = difference(models[a], models[b]) if a is not None and b is not None else None
        rows += [{"what": what, "a": a, "b": b, **found}] if found else []
    return rows


def verdict(low: float | None, high: float | None) -> str:
    """What an interval of a difference says, in words."""
    if low is None or high is None:
        return ""
    return "the interval is above 0" if low > 0 else "the interval is below 0" if high < 0 else "no difference shown"


def headline_cards(report: Row) -> list[dict[str, Any]]:
    """The headline's numbers with what each means."""
    who = report["headline"]
    own = report["models"].get(who["final"])
    if own is None or own["mean"] is None:
        return []
    n, users = (f"{own[key]:,}" if own[key] is not None else "all" for key in ("n", "n_users"))
    whose = f"{n} questions of {users} {held_out(report)[0]}"
    label = f"{who['final']}, {report['headline']['rank']}: mean task score on {whose}"
    cards = [{"value": f"{own['mean']:.3f}", "low": own["low"], "high": own["high"], "label": label, "verdict": ""}]
    added = {"rl": "what reinforcement learning added to {a}", "all": "what all training added to {a}"}
    for gain in who["gains"]:
        before = report["models"][gain["a"]]
        score = f"{before['mean']:.3f}"
        if before["truncated"]:  # a gain over unfinished responses is not all learning
            score += f", {100 * before['truncated']:.1f} % of its responses cut off"
        cards.append(
            {
                "value": f"{gain['difference']:+.3f}", "low": gain["low"], "high": gain["high"],
                "label": f"{gain['a']} → {gain['b']}: {added[gain['what']].format(**gain)} ({score})",
                "verdict": verdict(gain["low"], gain["high"]),
            }
        )  # fmt: skip
    for name, entry in list(report["controls"].items())[:1]:
        lost = entry.get("lost") if report["control_model"] == who["final"] else None
        if lost:
            label = {"shuffled": "with another user's profile", "empty": "without a profile"}.get(name, name)
            cards.append(
                {
                    "value": f"{lost['difference']:+.3f}", "low": lost["low"], "high": lost["high"],
                    "label": f"{who['final']} {label}: {entry['mean']:.3f}; what it loses was personal",
                    "verdict": verdict(lost["low"], lost["high"]),
                }
            )  # fmt: skip
    return cards


def held_out(report: Row) -> tuple[str, str]:
    """(whose questions are evaluated, what that means)."""
    return HELD_OUT[report["data"]["setting"] or "user"]


def ancestry(recipe: Recipe, final: str) -> list[tuple[str, str]]:
    """(model, how it was trained, short) of the final model's lineage, first to last."""
    rows = []
    for name in lineage(recipe, final):
        stage = recipe.stages[name]
        how = "reinforcement learning" if isinstance(stage, GrpoStage) else "start weights"
        if isinstance(stage, SftStage):
            how = f"fine-tuned on {SFT_DATA[stage.dataset]}"
        rows.append((name, how))
    return rows


def definitions(report: Row, recipe: Recipe) -> list[tuple[str, str]]:
    """(name, meaning) of all models, controls, baselines and ceilings that the page shows, then of its terms."""
    final = report["headline"]["final"]
    rows = [
        (name, model_meaning(recipe, name) + (f"; {report['headline']['rank']}" if name == final else ""))
        for name in dict.fromkeys([*recipe.stages, *report["models"]])
        if name in report["models"] or isinstance(recipe.stages[name], SftStage | GrpoStage)
    ]
    for label in report.get("other_prompts") or {}:
        name, _, style = label.rpartition("-")
        rows.append((label, f"{name} asked by another prompt: {PROMPTS[style]}. {name} itself has its best prompt"))
    for part, meanings in (("controls", CONTROLS), ("baselines", BASELINES), ("bounds", BOUNDS)):
        rows += [(name, meanings[name]) for name in report[part] or {} if name in meanings]
    cut = any(entry["truncated"] is not None for entry in report["models"].values())
    return [*rows, held_out(report), *((term, meaning) for term, meaning in TERMS.items() if cut or term != "cut off")]


def model_meaning(recipe: Recipe, name: str) -> str:
    """How the model of a stage was made, in words; "" for a name that is no stage."""
    stage = recipe.stages.get(name)
    if isinstance(stage, ModelStage):
        return "the start weights, before any training of this run"
    if isinstance(stage, SftStage):
        thought = "; it writes no thought" if answers_directly(recipe, name) else ""
        return f"{stage.init}, fine-tuned on {SFT_DATA[stage.dataset]}{thought}"
    if isinstance(stage, GrpoStage):
        return f"{stage.init}, trained on by reinforcement learning (GRPO); reward: {formula(stage.terms)}"
    return ""


def formula(terms: Sequence[Term]) -> str:
    """A reward as text; terms without weight are left out."""
    shown = [f"{'' if term.weight == 1 else f'{term.weight:g} × '}{term.label}" for term in terms if term.weight]
    return " + ".join(shown) or "0"
