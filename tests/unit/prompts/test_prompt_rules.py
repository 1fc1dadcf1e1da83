"""One order of tags: what the prompt says is what the constraints check, and every kept chain obeys its own prompt.

The prompt is read back from its words alone; its reader shares no code with the schema or the constraints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.chains.build import ChainRow, build_chains
from tagpr_rl.chains.keep import AnswerRules, KeepRules, world_keep_rules
from tagpr_rl.chains.labellers.label import ScriptedLabeller
from tagpr_rl.chains.labellers.propose import propose_schema
from tagpr_rl.chains.teachers.heuristic import HeuristicTeacher
from tagpr_rl.chains.teachers.interface import Teacher
from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.data.world.generate import WorldConfig, make_world
from tagpr_rl.prompts.prompt import build_prompt, reasoning_instruction
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.tags.constraints import tag_score, violations
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema, TagSpec, default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Step, TaggedTrace

Rules = dict[str, tuple[int, int, list[str]]]
"""Tag -> least and most steps, and the tags that it comes before."""


def read_rules(prompt: str) -> tuple[Rules, int]:
    """The rules of the tags, and the most steps in all, as a person reads them in the prompt."""
    instruction = prompt.split("\n")[0]
    rules: Rules = {}
    for name, said in re.findall(
        r"<([\w-]+)> [^<]*? \(((?:at|once|\d)[^()]*)\)[;.]", instruction.partition("The tags: ")[2]
    ):
        times, _, later = said.partition("; before ")
        numbers = [int(n) for n in re.findall(r"\d+", times.replace("once", "1 times"))]
        least = 0 if times.startswith("at most") else numbers[0]
        rules[name] = least, numbers[-1], later.split(", ") if later else []
    most = re.search(r"A thought has at most (\d+) steps", instruction)
    return rules, int(most[1]) if most else 10**9


def obeys(tags: Sequence[str], prompt: str) -> bool:
    """Whether a thought of distinct steps with these tags keeps the prompt's rules."""
    rules, most = read_rules(prompt)
    assert set(tags) <= set(rules)
    counts = all(least <= tags.count(name) <= top for name, (least, top, _) in rules.items())
    order = all(
        tags.index(name) < tags.index(other)
        for name, (_, _, later) in rules.items() if name in tags
        for other in later if other in tags
    )  # fmt: skip
    return 0 < len(tags) <= most and counts and order


def trace_of(tags: Sequence[str]) -> TaggedTrace:
    return TaggedTrace(tuple(Step(tag, f"w{i} x{i} y{i}") for i, tag in enumerate(tags)), "yes")


@st.composite
def schemas(draw: st.DrawFn) -> TagSchema:
    names = draw(st.permutations(["a", "b-c", "D_1", "before", "at_most"]))[: draw(st.integers(1, 5))]
    specs = []
    for i, name in enumerate(names):  # only later names of a hidden order: no cycle
        least, more = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        before = tuple(draw(st.lists(st.sampled_from(names[i + 1 :]), unique=True))) if names[i + 1 :] else ()
        specs.append(TagSpec(name, f"Does {name} (or so); before all.", least > 0, least, max(1, least + more), before))
    return TagSchema("1", tuple(draw(st.permutations(specs))))


@settings(max_examples=400, deadline=None)
@given(schemas(), st.data())
def test_the_prompt_says_what_the_constraints_check(schema: TagSchema, data: st.DataObject) -> None:
    prompt = reasoning_instruction(schema)
    assert "\n" not in prompt and list(read_rules(prompt)[0]) == list(schema.names)
    tags = data.draw(st.lists(st.sampled_from(schema.names), max_size=9))
    trace = trace_of(tags)
    assert obeys(tags, prompt) == (not violations(trace, schema)) == (tag_score(trace, schema) == 1.0)


def test_the_limit_of_all_steps_is_said_where_it_binds() -> None:
    schema = TagSchema("1", (TagSpec("a", "Does.", max_count=40), TagSpec("b", "Does.", max_count=40)))
    prompt = reasoning_instruction(schema)
    for n in (32, 33):
        tags = ["a"] * n + ["b"] * 32
        assert obeys(tags, prompt) == (not violations(trace_of(tags), schema)) == (n == 32)
    assert "A thought has at most" not in reasoning_instruction(default_schema())


def test_the_default_prompt_allows_the_order_of_the_demo_s_chains() -> None:
    prompt = reasoning_instruction(default_schema())
    assert obeys(["understand_task", "examine_examples", "infer_preference", "apply_preference"], prompt)
    assert not obeys(["infer_preference", "examine_examples", "apply_preference"], prompt)
    assert not obeys(["examine_examples", "infer_preference"], prompt)


def lamp_records() -> list[LampRecord]:
    """Three questions of each task, with items that differ."""
    inputs = {"LaMP_1": 'For an author who has written the paper with the title "cats", which? [1]: "dogs" [2]: "cars"'}
    records = []
    for task, spec in TASKS.items():
        for n in range(3):
            fields = [{key: f"{key} words {n}{i} on cats" for key in spec.item_keys} for i in range(4)]
            if spec.kind == "rating":
                fields = [{**item, "score": str(1 + i)} for i, item in enumerate(fields)]
            if spec.labels and spec.label_key:
                fields = [{**item, spec.label_key: spec.labels[i]} for i, item in enumerate(fields)]
            items = tuple(ProfileItem(f"{n}{i}", item) for i, item in enumerate(fields))
            text = inputs.get(task, f"{spec.input_template.split('{')[0]} cats sleep {n}. Dogs bark all day {n}.")
            records.append(LampRecord(f"{task}{n}", task, "train", f"u{n}", text, items, "3"))
    return records


def kept(records: Sequence[LampRecord], teacher: Teacher, schema: TagSchema, rules: KeepRules) -> tuple[ChainRow, ...]:
    def prompt_of(record: LampRecord) -> object:
        return build_prompt(
            record, rank(record, 4), style="reasoning", schema=schema, max_tokens=10_000,
            count_tokens=lambda messages: sum(len(m["content"].split()) for m in messages),
        )  # fmt: skip

    prompts = [prompt_of(record) for record in records]
    chains = build_chains(records, prompts, teacher, ScriptedLabeller(), schema, rules)  # type: ignore[arg-type]
    return chains.rows + chains.wrong


@pytest.mark.parametrize("teacher", ["scripted", "heuristic"])
def test_every_kept_chain_obeys_its_own_prompt(teacher: str) -> None:
    schema = default_schema()
    if teacher == "scripted":
        world = make_world(WorldConfig(seed=3, train_users=40, dev_users=1, time_users=0))
        rows = kept(world.records("train"), ScriptedTeacher(error_rate=0.2, seed=1), schema, world_keep_rules(0.2))
        assert {row.task for row in rows} == {"LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4"} and len(rows) >= 320
    else:
        rows = kept(lamp_records(), HeuristicTeacher(), schema, KeepRules(answers=AnswerRules(generation_gain=0.0)))
        assert {row.task for row in rows} == set(TASKS)
    for row in rows:
        trace = parse(row.response, schema).trace
        assert trace is not None
        assert obeys([step.tag for step in trace.steps], row.messages[0]["content"]), row.response


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_keep_filter_knows_any_schema(data: st.DataObject) -> None:
    """Schemas over the labeller's tags with random rules: what is kept obeys the prompt, what is dropped does not."""
    names = data.draw(st.permutations(default_schema().names))
    specs = []
    for i, name in enumerate(names):
        before = tuple(data.draw(st.lists(st.sampled_from(names[i + 1 :]), unique=True, max_size=2))) if i < 8 else ()
        specs.append(TagSpec(name, "Does it.", max_count=data.draw(st.integers(1, 2)), before=before))
    schema = TagSchema("1", tuple(specs))
    world = make_world(WorldConfig(seed=3, train_users=4, dev_users=1, time_users=0))
    records = world.records("train")
    rows = kept(records, ScriptedTeacher(seed=1), schema, world_keep_rules())
    for row in rows:
        trace = parse(row.response, schema).trace
        assert trace is not None and obeys([step.tag for step in trace.steps], row.messages[0]["content"])


def test_a_proposed_schema_is_said_as_it_checks() -> None:
    chains = [("x", "y", "z"), ("x", "z", "y"), ("x", "x", "y", "z")] * 3
    schema = propose_schema(chains, {"x": "First.", "y": "Second.", "z": "Third."}, "1")
    prompt = reasoning_instruction(schema)
    for tags in (*chains, ("y", "x", "z"), ("x",), ("z", "y")):
        assert obeys(tags, prompt) == (not violations(trace_of(tags), schema))
