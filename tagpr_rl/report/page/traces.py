"""The trace viewer's data: rollouts of every GRPO stage and evaluated responses, sampled to fit in a page."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagpr_rl.config import EvaluateStage, GrpoStage, Recipe, answers_directly
from tagpr_rl.prompts.prompt import NO_PROFILE, PROFILE_HEADER, QUESTION_HEADER, profile_items
from tagpr_rl.report.page.collect import reward_terms, stage_dirs
from tagpr_rl.report.page.embed import json_for_page
from tagpr_rl.report.page.read import Row, number, read_rows
from tagpr_rl.report.page.samples import blind, prompt_text, question_key
from tagpr_rl.report.page.trace import TAG_SHAPES, trace_view
from tagpr_rl.reward.components import TOTAL, Term, component_names, line_weights
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import TagSchema

FORMAT = 1
MOST_TRACES = 5000
MOST_EVALUATED = 1000
"""Evaluated responses among them if rollouts need the room."""
MOST_FILES = 60
"""Rollout files that are opened; more are sampled evenly, the first and the last of a run always among them."""
MOST_BYTES = 9_000_000
"""Of the viewer's data as it stands in the page."""
HELD_OUT = "held-out"
ANSWER, RAW, MARK = -1, -2, -3
"""Instead of a step's tag index: the answer, text that was not parsed, the place of the parser's verdict."""

ASSISTANT = re.compile(r"\s+assistant(\s+<think>)?\s*$")
Prompt = tuple[str, str, str]


@dataclass(slots=True)
class Traces:
    """What the viewer shows, as flat lists that refer to each other by index; `as_json` is the page's form."""

    schema: TagSchema
    terms: Sequence[Term] = ()
    """Terms of the rewards of all stages shown."""
    prompts: list[list[Any]] = field(default_factory=list)
    records: list[list[Any]] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)
    traces: list[dict[str, Any]] = field(default_factory=list)
    heads: dict[str, int] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)
    _records: dict[tuple[str, str], int] = field(default_factory=dict)
    shown: dict[str, list[int]] = field(default_factory=dict)
    """"rollouts" and "evaluated": [shown, of]."""

    @property
    def rewards(self) -> list[str]:
        """The total and the components, in the order of a trace's `r`."""
        return [TOTAL, *component_names(self.terms)]

    def group(self, stage: str, step: int | None, row: Row) -> int:
        """Index of a new group: the responses of `stage` at `step` to the row's question."""
        key = (str(row.get("task", "")), str(row.get("record_id", "")))
        if key not in self._records:
            head, profile, question = split_prompt(prompt_text(row.get("prompt")))
            items = profile_items(key[0], profile)
            self.prompts.append([self.heads.setdefault(head, len(self.heads)), items, question])
            self._records[key] = len(self.records)
            self.records.append([*key, str(row.get("user_id", "")), str(row.get("gold", ""))])
        self.groups.append([self.stages.setdefault(stage, len(self.stages)), step, self._records[key]])
        return len(self.groups) - 1

    def add(self, group: int, name: str, row: Row, weights: Mapping[str, float] | None, plain: bool = False) -> None:
        """One response. `weights` None: an evaluated one, which has a task score and no reward.

        `plain`: the model answers directly, so that no verdict on its thought is shown.
        """
        response = str(row.get("response", ""))
        view = None if plain else trace_view(response, self.schema)
        tags = {name: index for index, name in enumerate(self.schema.names)}
        kinds = {"answer": ANSWER, "raw": RAW, "mark": MARK}
        trace: dict[str, Any] = {"g": group, "n": name, "s": view.status if view else "DIRECT"}
        trace["p"] = (
            [[tags[p.tag] if p.kind == "step" else kinds[p.kind], p.text.strip()] for p in view.pieces]
            if view
            else [[ANSWER, response.strip()]]
        )
        if view and view.reason:
            trace["why"] = view.reason
        if weights is None:
            trace["score"] = _rounded(number(row.get("score")))
        else:
            trace["r"] = [_rounded(number(row.get(f"reward_{name}"))) for name in self.rewards]
            trace["a"] = _rounded(number(row.get("advantage")))
            trace["w"] = [weights.get(term.name) for term in self.terms]
            if isinstance(parts := row.get("tag_parts"), dict):
                trace["tp"] = {str(key): _rounded(number(part)) for key, part in parts.items()}
            if (status := str(row.get("prmu_status", "scored"))) != "scored":
                trace["prmu"] = status
            if credits := _step_credit(row.get("step_credit")):
                trace["c"] = credits
            if row.get("masked"):
                trace["masked"] = str(row.get("why") or "masked")
            if stale := number(row.get("staleness")):
                trace["stale"] = stale
        self.traces.append(trace)

    def subset(self, groups: Collection[int]) -> Traces:
        """These groups alone, in their order, with the questions that they need."""
        chosen = sorted(groups)
        new = Traces(self.schema, self.terms, heads=dict(self.heads), stages=dict(self.stages), shown=dict(self.shown))
        for record in dict.fromkeys(self.groups[group][2] for group in chosen):
            task, identity = self.records[record][:2]
            new._records[task, identity] = len(new.records)
            new.records.append(self.records[record])
            new.prompts.append(self.prompts[record])
        place = {group: index for index, group in enumerate(chosen)}
        for group in chosen:
            stage, step, record = self.groups[group]
            new.groups.append([stage, step, new._records[tuple(self.records[record][:2])]])
        new.traces = [{**trace, "g": place[trace["g"]]} for trace in self.traces if trace["g"] in place]
        return new

    def as_json(self) -> dict[str, Any]:
        """The viewer's data; see templates/viewer.js for what reads it."""
        return {
            "format": FORMAT,
            "tags": [[name, TAG_SHAPES[i % len(TAG_SHAPES)]] for i, name in enumerate(self.schema.names)],
            "terms": [[term.label, [self.rewards.index(name) for name in term.factors]] for term in self.terms],
            "stages": list(self.stages),
            "heads": list(self.heads),
            "prompts": self.prompts,
            "records": self.records,
            "groups": self.groups,
            "traces": self.traces,
            "shown": self.shown,
        }


def viewer_data(run: RunDir, recipe: Recipe, schema: TagSchema, *, most: int = MOST_TRACES) -> dict[str, Any]:
    """`viewer_traces` as JSON."""
    return viewer_traces(run, recipe, schema, most=most).as_json()


def viewer_traces(
    run: RunDir,
    recipe: Recipe,
    schema: TagSchema,
    *,
    most: int = MOST_TRACES,
    files: Sequence[tuple[str, Path]] | None = None,
) -> Traces:
    """At most about `most` responses and `MOST_BYTES` of them as JSON; whole groups, evenly over steps.

    `files`: of `rollout_files` only these.
    """
    rollouts = list(rollout_files(run, recipe)) if files is None else files
    while True:
        traces = _collect(run, recipe, schema, most, rollouts)
        size = len(json_for_page(traces.as_json()).encode())
        if size <= MOST_BYTES or most <= 50:
            return traces
        most = min(most - 1, int(0.95 * most * MOST_BYTES / size))


def _collect(run: RunDir, recipe: Recipe, schema: TagSchema, most: int, files: Sequence[tuple[str, Path]]) -> Traces:
    traces = Traces(schema, reward_terms(recipe))
    evaluated = dict(_evaluated(run, recipe))
    counts = [path.read_bytes().count(b"\n") for _, path in files]
    n_evaluated = sum(len(rows) for rows in evaluated.values())
    room = max(most - sum(counts), most * MOST_EVALUATED // MOST_TRACES)
    held_out = min(room, n_evaluated)
    spare = 0  # what whole groups left of the quotas before
    for (stage, path), quota in zip(files, quotas(counts, most - held_out), strict=True):
        if quota:
            spare += quota - add_file(traces, recipe, stage, path, quota + spare)
    shown = len(traces.traces)
    traces.shown = {"rollouts": [shown, sum(counts)]}
    _add_evaluated(traces, recipe, evaluated, held_out)
    traces.shown["evaluated"] = [len(traces.traces) - shown, n_evaluated]
    return traces


def rollout_files(run: RunDir, recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """(stage, file of a step) of the GRPO stages, in order."""
    for name, kind, directory in stage_dirs(run, recipe):
        if kind == "grpo" and directory.rollouts.is_dir():
            yield from ((name, path) for path in sorted(directory.rollouts.glob("step_*.jsonl")))


def quotas(counts: Sequence[int], most: int, most_files: int = MOST_FILES) -> list[int]:
    """How many responses of each file to show: at most `most` together, from at most `most_files` files.

    Files are taken evenly over the steps; each gives the same number, or all it has.
    """
    used = set(evenly(len(counts), most_files))
    out = [0] * len(counts)
    left, open_files = most, sorted(used, key=lambda i: counts[i])
    for position, index in enumerate(open_files):  # smallest first: what it does not use, the others share
        out[index] = min(counts[index], left // (len(open_files) - position))
        left -= out[index]
    return out


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of 0..n-1, evenly spaced, the first and the last among them."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)}) if most > 1 else [0]


def add_file(traces: Traces, recipe: Recipe, stage: str, path: Path, quota: int) -> int:
    """Add whole groups of one file up to `quota` responses, one group at least; returns how many were added."""
    config = recipe.stages[stage]
    assert isinstance(config, GrpoStage)
    weights = {term.name: term.weight for term in config.terms}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in read_rows(path):
        key = (str(row.get("task", "")), str(row.get("record_id", "")), str(row.get("group", "")))
        groups.setdefault(key, []).append(row)
    taken = 0
    for key in sorted(groups, key=blind):
        rows = groups[key]
        if taken and taken + len(rows) > quota:
            break
        taken += len(rows)
        step = number(rows[0].get("step"))
        group = traces.group(stage, None if step is None else int(step), rows[0])
        for row in rows:
            own = row.get("weights")
            logged = isinstance(own, dict) and own and all(number(value) is not None for value in own.values())
            traces.add(group, str(row.get("sample", "")), row, line_weights(dict(own or {})) if logged else weights)
    return taken


def _evaluated(run: RunDir, recipe: Recipe) -> Iterator[tuple[str, list[Row]]]:
    """(model, rows) of the evaluate stages; a later stage's rows replace an earlier one's."""
    for name, _, directory in stage_dirs(run, recipe):
        stage = recipe.stages[name]
        if isinstance(stage, EvaluateStage):
            for model in stage.models:
                if rows := read_rows(directory.root / "responses" / f"{model}.jsonl"):
                    yield model, rows


def _add_evaluated(traces: Traces, recipe: Recipe, responses: Mapping[str, Sequence[Row]], quota: int) -> None:
    """A question is a group; its responses are the models', in the order of the recipe."""
    direct = {name for name in recipe.stages if answers_directly(recipe, name)}
    by_model = {m: {question_key(row): row for row in rows} for m, rows in responses.items()}
    models = [name for name in recipe.stages if name in by_model]
    taken = 0
    for key in sorted({key for rows in by_model.values() for key in rows}, key=blind):
        rows = {model: by_model[model][key] for model in models if key in by_model[model]}
        if taken + len(rows) > quota:
            break
        taken += len(rows)
        group = traces.group(HELD_OUT, None, list(rows.values())[-1])
        for model, row in rows.items():
            traces.add(group, model, row, None, plain=model in direct)


def split_prompt(prompt: str) -> Prompt:
    """(instruction, profile, question) of a prompt of this project; of another prompt ("", "", all of it).

    A rollout's prompt was rendered by a chat template; the role names that this leaves are removed.
    """
    if prompt.lstrip().startswith("user"):
        prompt = ASSISTANT.sub("", prompt.lstrip().removeprefix("user"))
    starts = [at for header in (PROFILE_HEADER, NO_PROFILE) if (at := prompt.find(header)) >= 0]
    end = prompt.rfind(QUESTION_HEADER)
    if not starts or end < min(starts):
        return "", "", prompt.strip()
    at = min(starts)
    profile = prompt[at:end].strip()
    question = prompt[end + len(QUESTION_HEADER) :].strip()
    return prompt[:at].strip(), profile.removeprefix(PROFILE_HEADER).strip(), question


def _step_credit(raw: Any) -> list[float | None]:
    """Advantage of each step in order; [] if the response has none."""
    if not isinstance(raw, list):
        return []
    table = {int(c["step"]): _rounded(number(c.get("advantage"))) for c in raw if isinstance(c, dict) and "step" in c}
    return [table.get(i) for i in range(max(table) + 1)] if table else []


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
