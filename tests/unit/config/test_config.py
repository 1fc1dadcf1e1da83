"""Recipes: round trip, refusal of unknown keys with the nearest known one, overrides, extends, references."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.config import Recipe, dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.types import TagprError

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "recipes" / "demo.yaml"

SMALL: dict[str, Any] = {
    "name": "small",
    "stages": {
        "data": {"kind": "data"},
        "model": {"kind": "model"},
        "prompts": {"kind": "prompts"},
        "chains": {"kind": "chains"},
        "sft": {"kind": "sft", "init": "model"},
        "prmu": {"kind": "prmu", "init": "sft"},
        "guided": {"kind": "grpo", "init": "sft", "prmu": "prmu"},
        "eval": {"kind": "evaluate", "models": ["sft", "guided"]},
    },
}


def small(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SMALL), **changes}


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(TagprError) as caught:
        recipe_from_dict(raw, source="here.yaml")
    return str(caught.value)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Valid raw recipes that differ from the defaults in values of every type."""
    grpo = {
        "kind": "grpo", "init": "sft", "prmu": "prmu",
        "lr": draw(st.floats(1e-7, 1.0)),
        "group_size": draw(st.sampled_from([2, 4, 8])), "prompts_per_step": 32,
        "micro_batch_size": draw(st.sampled_from([1, 8, 32])),
        "weights": {key: draw(st.floats(0, 5)) for key in ("alpha", "beta", "gamma")},
        "save_every": draw(st.none() | st.integers(1, 9)),
        "filter": draw(st.none() | st.just({"share": 0.25, "mixed": {"samples": 3}}) | st.just({"questions": 50})),
        "stop": draw(st.none() | st.just({"max_seconds": 1.5}) | st.just({"plateau": {"better": "lower"}})),
    }  # fmt: skip
    raw = small(
        out=draw(st.sampled_from(["runs", "/some/where", "a/b"])),
        schema_file=draw(st.none() | st.just("tags.yaml")),
        data={
            "lamp_dir": draw(st.none() | st.just("files")),
            "tasks": draw(st.lists(st.sampled_from(["LaMP_1", "LaMP_2N", "LaMP_7"]), min_size=1, unique=True)),
            "held_out_fraction": draw(st.floats(0.01, 0.99)),
            "retrieval": {"method": draw(st.sampled_from(["bm25", "none"])), "k": draw(st.integers(1, 50))},
        },
        platform={"device": draw(st.sampled_from(["cpu", "cuda"])), "nodes": draw(st.integers(1, 64))},
    )
    raw["stages"]["guided"] = grpo
    return raw


@given(recipes())
def test_a_dumped_recipe_loads_to_the_same_recipe(raw: dict[str, Any]) -> None:
    recipe = recipe_from_dict(raw, source="x")
    text = json.dumps(dump_recipe(recipe), allow_nan=False)
    assert recipe_from_dict(json.loads(text), source="y") == recipe


def blocks(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of every mapping in a dumped recipe, but `stages` itself (whose keys are free)."""
    if not isinstance(value, dict):
        return []
    own = [] if path == ("stages",) else [path]
    return own + [inner for key, below in value.items() for inner in blocks(below, (*path, key))]


DUMPED = dump_recipe(recipe_from_dict(SMALL, source="x"))


@given(st.sampled_from(blocks(DUMPED)), st.data())
def test_an_unknown_key_at_any_depth_is_refused_with_the_nearest_known_one(
    path: tuple[str, ...], data: st.DataObject
) -> None:
    raw = copy.deepcopy(DUMPED)
    block = raw
    for part in path:
        block = block[part]
    known = data.draw(st.sampled_from(sorted(key for key in block if key != "kind")))
    wrong = known + "x"
    block[wrong] = block[known]
    message = refusal(raw)
    assert "here.yaml" in message
    assert f"{'.'.join((*path, wrong))}: unknown key; did you mean '{known}'?" in message


def test_an_unknown_key_near_nothing_lists_the_known_ones() -> None:
    assert "data.retrieval.qqqqqqq: unknown key; known keys: method, k, ties, " in refusal(
        small(data={"retrieval": {"qqqqqqq": 1}})
    )


def test_all_mistakes_are_named_at_once() -> None:
    message = refusal(small(nmae="x", data={"limit": 0}, platform={"device": "tpu"}))
    assert "3 mistake(s)" in message
    assert "nmae: unknown key; did you mean 'name'?" in message
    assert "data.limit" in message and "(got 0)" in message
    assert "platform.device" in message and "'tpu'" in message


@pytest.mark.parametrize(
    "override, path, value",
    [
        ("data.limit=7", ("data", "limit"), 7),
        ("data.tasks=[LaMP_2,LaMP_4]", ("data", "tasks"), ["LaMP_2", "LaMP_4"]),
        ("stages.guided.lr=3e-4", ("stages", "guided", "lr"), 0.0003),
        ("data.lamp_dir=null", ("data", "lamp_dir"), None),
        ("data.lamp_dir=a=b", ("data", "lamp_dir"), "a=b"),
        ("model.thought_prefilled=true", ("model", "thought_prefilled"), True),
        ("platform.ray_address=auto", ("platform", "ray_address"), "auto"),
    ],
)
def test_an_override_sets_one_key(tmp_path: Path, override: str, path: tuple[str, ...], value: Any) -> None:
    file = write(tmp_path, yaml.safe_dump(SMALL, sort_keys=False))
    actual: Any = dump_recipe(load_recipe(file, (override,)))
    before: Any = dump_recipe(load_recipe(file))
    for part in path[:-1]:
        actual, before = actual[part], before[part]
    assert actual.pop(path[-1]) == value
    before.pop(path[-1])
    assert actual == before


@pytest.mark.parametrize(
    "override, part",
    [
        ("data.limit", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("data.limit=[1", "not valid YAML"),
        ("name.x=3", "'name' is a value"),
        ("data.limitt=3", "did you mean 'limit'?"),
        ("stages.guided.group_sizes=4", "did you mean 'group_size'?"),
        ("data.limit=many", "data.limit"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, part: str) -> None:
    file = write(tmp_path, yaml.safe_dump(SMALL, sort_keys=False))
    with pytest.raises(TagprError) as caught:
        load_recipe(file, (override,))
    assert part in str(caught.value)


def test_extends_replaces_only_what_it_names(tmp_path: Path) -> None:
    write(tmp_path, yaml.safe_dump(SMALL, sort_keys=False), "base.yaml")
    (tmp_path / "ablations").mkdir()
    child = write(
        tmp_path / "ablations",
        "extends: ../base.yaml\nname: child\nstages: {guided: {weights: {beta: 0.5}}}\n",
        "child.yaml",
    )
    expected = copy.deepcopy(DUMPED)
    expected["name"] = "child"
    expected["stages"]["guided"]["weights"]["beta"] = 0.5
    assert dump_recipe(load_recipe(child)) == expected


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(TagprError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text, part",
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("name: a\nname: b\n", "key given twice"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(TagprError) as caught:
        load_recipe(file)
    assert part in str(caught.value) and str(file) in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "stage, change, part",
    [
        ("sft", {"init": "modle"}, "stages.sft.init: no earlier stage is called 'modle'; did you mean 'model'?"),
        ("sft", {"init": "guided"}, "stages.sft.init: no earlier stage is called 'guided'"),
        ("sft", {"init": "chains"}, "stage 'chains' is of kind chains, not grpo or model or sft"),
        ("guided", {"prmu": "sft"}, "stage 'sft' is of kind sft, not prmu"),
        ("guided", {"prmu": None}, "weights.beta is above 0"),
        ("guided", {"group_size": 1}, "group_size must be at least 2"),
        ("guided", {"micro_batch_size": 7}, "not a multiple"),
        ("eval", {"models": ["sft", "explore"]}, "no earlier stage is called 'explore'"),
    ],
)
def test_wrong_references_between_stages_are_refused(stage: str, change: dict[str, Any], part: str) -> None:
    raw = small()
    raw["stages"][stage] |= change
    assert part in refusal(raw)


def test_the_demo_has_both_grpo_stages_and_exploratory_drops_tag_and_prmu() -> None:
    stages = dump_recipe(load_recipe(DEMO))["stages"]
    assert stages["guided"]["weights"]["beta"] > 0 and stages["guided"]["prmu"] == "prmu"
    assert (stages["explore"]["weights"]["alpha"], stages["explore"]["weights"]["beta"]) == (0, 0)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"strategy": "fsdp2", "deepspeed": {}}, "strategy is fsdp2; set strategy: deepspeed"),
        ({"strategy": "deepspeed", "deepspeed": {"offload_params": True}}, "offload_params needs zero_stage: 3"),
        ({"strategy": "deepspeed", "deepspeed": {"zero_stage": 0}}, "deepspeed.zero_stage"),
        ({"strategy": "deepspeed", "deepspeed": {"zero_stge": 2}}, "did you mean 'zero_stage'?"),
        ({"strategy": "fsdp"}, "stages.sft.strategy"),
    ],
)
def test_a_wrong_engine_is_refused(change: dict[str, Any], part: str) -> None:
    raw = copy.deepcopy(DUMPED)
    raw["stages"]["sft"] |= change
    assert part in refusal(raw)


def test_demo_deepspeed_differs_from_the_demo_by_its_engine_alone() -> None:
    mine = dump_recipe(load_recipe(ROOT / "recipes/demo_deepspeed.yaml"))
    changed = set()
    for name, stage in mine["stages"].items():
        if stage.get("strategy") == "deepspeed":
            assert stage["deepspeed"]["zero_stage"] == 2
            stage |= {"strategy": "fsdp2", "deepspeed": None}
            changed.add(name)
    assert changed == {"base", "sft", "prmu", "guided", "explore"}
    assert mine | {"name": "demo"} == dump_recipe(load_recipe(DEMO))


def removal(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    """A recipe that extends one with the stages of SMALL."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False), encoding="utf-8")
    file = tmp_path / "top.yaml"
    file.write_text("extends: base.yaml\n" + text, encoding="utf-8")
    return load_recipe(file, overrides)


@pytest.mark.parametrize("text, overrides", [("stages: {eval: null}", ()), ("", ("stages.eval=null",))])
def test_null_removes_a_stage(tmp_path: Path, text: str, overrides: tuple[str, ...]) -> None:
    assert "eval" in SMALL["stages"]
    actual = removal(tmp_path, text, *overrides)
    assert list(actual.stages) == [name for name in SMALL["stages"] if name != "eval"]


def test_a_removed_stage_that_is_still_needed_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(TagprError) as error:
        removal(tmp_path, "stages: {guided: null}")
    assert "stages.eval.models: it needs stage 'guided', which stages.guided=null removes" in str(error.value)


@pytest.mark.parametrize("text, overrides", [("stages: {evall: null}", ()), ("", ("stages.evall=null",))])
def test_null_for_a_stage_that_is_not_there_is_an_error(tmp_path: Path, text: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(TagprError, match=r"stages\.evall=null removes a stage.*did you mean 'eval'"):
        removal(tmp_path, text, *overrides)


def test_a_removed_stage_may_be_given_anew_further_down(tmp_path: Path) -> None:
    removal(tmp_path, "stages: {eval: null}")
    file = tmp_path / "third.yaml"
    file.write_text("extends: top.yaml\nstages: {eval: {kind: evaluate, models: [sft]}}", encoding="utf-8")
    assert list(load_recipe(file).stages)[-1] == "eval"


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"user_dropout": 1.5}, {"centre": -1.0}, {"head_lr": 0.0}, {"eval_every": 0, "patience": 3}],
)
def test_settings_of_prmu_out_of_range_are_refused(change: dict[str, Any]) -> None:
    raw = small()
    raw["stages"]["prmu"] |= change
    with pytest.raises(TagprError, match=r"stages\.prmu"):
        recipe_from_dict(raw, source="x")
