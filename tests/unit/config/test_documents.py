"""YAML and JSON as plain values: one spelling of each value, merge keys, and one clear message for everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.config import load_recipe
from tagpr_rl.documents import parse_json, parse_yaml, read_document
from tagpr_rl.files import user_path
from tagpr_rl.run.sweep import load_sweep
from tagpr_rl.tags.schema import load_schema
from tagpr_rl.types import TagprError

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "recipes/smoke.yaml"


@pytest.mark.parametrize(
    "text, value",
    [
        ("7", 7), ("-3", -3), ("+2", 2), ("0.5", 0.5), (".5", 0.5), ("1.", 1.0), ("1e-4", 1e-4), ("3E2", 300.0),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("off", "off"), ("y", "y"), ("010", "010"), ("0x10", "0x10"), ("0o7", "0o7"), ("0b1", "0b1"),
        ("1_000", "1_000"), ("1:30", "1:30"), (".", "."), ("e5", "e5"), ("nan", "nan"), ("=", "="),
        ("'7'", "7"), ('"true"', "true"), ("!!str 7", "7"), ("!!int 7", 7), ("!!float 7", 7), ("! 7", "7"),
        ("'2025-31-12'", "2025-31-12"), ("[1, a, [true]]", [1, "a", [True]]), ("{a: {b: }}", {"a": {"b": None}}),
        ("<<", "<<"),
    ],
)  # fmt: skip
def test_a_value_has_one_spelling(text: str, value: Any) -> None:
    read = parse_yaml(text, "here")
    assert read == value and type(read) is type(value)


def test_merge_keys_give_what_the_block_does_not_have_itself() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: *a, y: 9}\nd: {<<: [*a, *b]}\ne: {y: 0, <<: {y: 5, w: 6}}"
    read = parse_yaml(text, "here")
    assert read["c"] == {"x": 1, "y": 9}
    assert read["d"] == {"x": 1, "y": 2, "z": 4}  # of several blocks the first one wins
    assert read["e"] == {"y": 0, "w": 6}


@pytest.mark.parametrize(
    "text, part",
    [
        ("a:\n  b: 2025-31-12", "here, line 2: a.b: 2025-31-12 looks like a date"),
        ("x: 2025-12-31 10:00:00", "looks like a date"),
        ("a: 1\nb: .inf", "here, line 2: b: .inf is no finite number"),
        ("a: -.NaN", "no finite number"),
        ("a: 1e999", "too large"),
        ("a: " + "9" * 5000, "too large"),
        ("a: 9223372036854775808", "too large"),
        ("a: 1\nb: 2\na: 3", "line 3: key given twice: a"),
        ("1: a", "the key 1 is no text"),
        ("? [a]\n: b", "is no text"),
        ("null: a", "is no text"),
        ("a: {<<: 3}", "<<: takes a block"),
        ("a: &a {b: *a}", "inside the block that it repeats"),
        ("a: &a [*a]", "inside the block that it repeats"),
        ("!!python/object/apply:os.system ['true']", "the tag !!python/object/apply:os.system is not read here"),
        ("a: !!binary x", "the tag !!binary"),
        ("a: !!set {b}", "the tag !!set"),
        ("a: !!timestamp 2025-01-01", "looks like a date"),
        ("a: !env HOME", "the tag !env"),
        ("a: !!int x", "the tag !!int"),
        ("a: !!int true", "the tag !!int"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a:\tb:\t- c", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ('a: "\\0"', "control character"),
        ('a: "\\ud800"', "control character"),
        ('a: "\\U00110000"', "not valid YAML"),
        ("[" * 5000, "too deeply"),
        ("[" * 80 + "]" * 80, "too deeply"),
        ("%YAML 3.0\n---\na: 1", "not valid YAML"),
    ],
)
def test_anything_else_is_one_message_with_line_and_key(text: str, part: str) -> None:
    with pytest.raises(TagprError) as caught:
        parse_yaml(text, "here")
    assert part in str(caught.value) and str(caught.value).startswith("here")


def test_aliases_that_grow_without_end_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    with pytest.raises(TagprError, match=r"here, line \d+: .*more than 100,000 values"):
        parse_yaml(bomb, "here")


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', "[" * 10**5, "{", f"[{10**30}]", '["\\ud800"]']
)
def test_json_has_the_same_rules(text: str) -> None:
    with pytest.raises(TagprError, match="here is not valid JSON"):
        parse_json(text, "here")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: caf\u00e9".encode("latin-1"))
    (tmp_path / "large.yaml").write_bytes(b"#" * 5_000_000)
    for name, part in {"": "is a folder", "none.yaml": "no such file", "latin.yaml": "UTF-8", "large.yaml": "at most",
                       "latin.yaml/x": "cannot be read", "n" * 300: "cannot be read"}.items():  # fmt: skip
        with pytest.raises(TagprError, match=part):
            read_document(tmp_path / name, "recipe")


READERS = {
    "recipe": lambda path: load_recipe(path),
    "sweep": lambda path: load_sweep(path),
    "tag schema": lambda path: load_schema(path),
}


@pytest.mark.parametrize("what", READERS)
def test_every_reader_is_this_one(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("version: 1\nname: 2025-31-12\n", encoding="utf-8")
    with pytest.raises(TagprError, match=f"{what} {path}, line 2: name: 2025-31-12 looks like a date"):
        READERS[what](path)


def test_a_recipe_with_a_merge_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        f"extends: {SMOKE}\nstages:\n  sft: &s {{lr: 0.25, steps: 11}}\n  base:\n    <<: *s\n    steps: 7\n"
    )
    stages: Any = load_recipe(path).stages
    assert (stages["base"].lr, stages["base"].steps, stages["sft"].steps) == (0.25, 7, 11)


@pytest.mark.parametrize(
    "override, line",
    [
        ("stages.sft.save_every=yes", "stages.sft.save_every: a whole number is expected (got 'yes')"),
        ("stages.sft.save_every=true", "a whole number is expected (got true)"),
        ("stages.sft.save_every='100'", "(got '100'); write plain decimal digits, without quotes"),
        ("stages.sft.save_every=100.0", "(got 100.0); write 100"),
        ("stages.sft.steps=010", "(got '010')"),
        ("stages.sft.lr=true", "a number is expected (got true)"),
        ("log.tensorboard=1", "true or false is expected (got 1)"),
        ("log.tensorboard=on", "(got 'on'); write true"),
        ("log.project=5", "text is expected (got 5)"),
        ("stages.sft.deepspeed={zero_stage: true}", "a whole number is expected (got true)"),
        ("stages.sft.seed=-1", "stages.sft.seed"),
        ("data.held_out_fraction=10%", "write 0.1"),
        ("data.held_out_fraction=10", "for 10 % write 0.1"),
        ("data.tasks=LaMP_2", "a list is expected (got 'LaMP_2'); write [LaMP_2]"),
        ("stages.guidd.lr=1e-4", "stages.guidd: did you mean 'guided'?"),
        ("stages.guided.learning_rate=1e-4", "did you mean 'lr'?"),
        ("data.limit=", "has no value; write data.limit=null"),
        ("name=my/run", "name: 'my/run' is not a name"),
    ],
)
def test_types_are_strict_and_the_remedy_is_named(override: str, line: str) -> None:
    with pytest.raises(TagprError) as caught:
        load_recipe(SMOKE, (override,))
    assert line in str(caught.value)


def test_a_wrong_item_is_the_only_mistake_of_its_list() -> None:
    with pytest.raises(TagprError, match=r"has 1 mistake\(s\):\n  data.tasks.0: one of LaMP_1, .*\(got 'LaMP_8'\)$"):
        load_recipe(SMOKE, ("data.tasks=[LaMP_8]",))


@pytest.mark.parametrize(
    "override",
    [
        "data.tasks=[LaMP_2, LaMP_2]", "stages.eval.models=[sft, sft]", "stages.eval.controls=[empty, empty]",
        "stages.guided.filter={tasks: [LaMP_2, LaMP_2]}", "stages.guided.alerts.abort_on=[masked, masked]",
        "cluster.env=[HF_TOKEN, HF_TOKEN]", "lora={target_modules: [q_proj, q_proj]}",
    ],
)  # fmt: skip
def test_a_list_that_must_not_repeat(override: str) -> None:
    with pytest.raises(TagprError, match=r"stands twice; name each one once"):
        load_recipe(SMOKE, (override,))


def test_a_sweep_given_to_run_and_a_recipe_given_to_sweep(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match="is a sweep, not a recipe"):
        load_recipe(ROOT / "recipes/sweeps/ablations.yaml")
    with pytest.raises(TagprError, match="is a recipe, not a sweep"):
        load_sweep(SMOKE)


PATH_KEYS = (
    "out={}", "data.lamp_dir={}", "model.path={}", "schema_file={}", "stages.chains.answers={}",
    "stages.prmu.backbone={}", "stages.guided.rollouts_from={}", "from_run={{run: {}}}",
    "data.retrieval={{method: file, path: {}}}", "data.retrieval={{method: dense, encoder: {}}}",
    "data.retrieval={{cache: {}}}",
    "stages.chains.labeller={{kind: vllm, model: {}}}",
)  # fmt: skip


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize(
    "path", ["$HOME/x", "${HOME}/x", "a\\\\b", "x ", "", "~nobody-of-this-name/x", "a\\nb", "n" * 300]
)
def test_a_path_that_cannot_be_meant_so_is_refused(key: str, path: str) -> None:
    with pytest.raises(TagprError, match="is no path"):
        load_recipe(SMOKE, (key.format(f'"{path}"'),))


def test_the_home_folder_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(SMOKE, ("out=~/runs",)).out == tmp_path / "runs"
    assert user_path("~") == tmp_path and user_path("a/~b") == Path("a/~b")


def test_a_schema_in_json_keeps_emoji_and_tabs(tmp_path: Path) -> None:
    value = {"version": "1", "tags": [{"name": "a", "purpose": "\U0001f600\tx"}]}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert load_schema(path).tags[0].purpose == "\U0001f600\tx"
