"""Tag schema: the default one, its hash, and every mistake a schema file can hold."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagpr_rl.tags.schema import (
    TagSchema,
    TagSpec,
    default_schema,
    load_schema,
    schema_from_mapping,
    to_mapping,
)
from tagpr_rl.types import TagprError


def test_default_schema_has_the_nine_tags_in_order() -> None:
    assert default_schema().names == (
        "examine_examples",
        "identify_patterns",
        "understand_task",
        "infer_preference",
        "compare_options",
        "weigh_conflict",
        "apply_preference",
        "check_answer",
        "conclude",
    )
    required = {tag.name for tag in default_schema().tags if tag.required}
    assert required == {"examine_examples", "infer_preference", "apply_preference"}
    assert all(tag.purpose.endswith(".") for tag in default_schema().tags)


def test_hash_is_of_canonical_json_and_sees_every_field() -> None:
    one = TagSchema("1", (TagSpec("a", "p"),))
    # sha256sum of the canonical JSON text, written out by hand
    assert one.sha256 == "e4a50d89cf89f30312fb8bd22e8ea0327cda555591691431be8e6a0f72895510"
    others = [
        TagSchema("2", (TagSpec("a", "p"),)),
        TagSchema("1", (TagSpec("b", "p"),)),
        TagSchema("1", (TagSpec("a", "q"),)),
        TagSchema("1", (TagSpec("a", "p", required=True, min_count=1),)),
        TagSchema("1", (TagSpec("a", "p", max_count=2),)),
        TagSchema("1", (TagSpec("a", "p"), TagSpec("b", "p"))),
        TagSchema("1", (TagSpec("a", "p", before=("b",)), TagSpec("b", "p"))),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 8


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_load_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"schema{suffix}"
    value = to_mapping(default_schema())
    path.write_text(json.dumps(value) if suffix == ".json" else yaml.safe_dump(value), encoding="utf-8")
    assert load_schema(path) == default_schema()
    assert load_schema(path).sha256 == default_schema().sha256


def test_defaults_of_optional_keys() -> None:
    tags = [{"name": "a", "purpose": "p", "required": True}, {"name": "b", "purpose": "p"}]
    schema = schema_from_mapping({"version": "1", "tags": tags}, where="x")
    assert schema.tags == (TagSpec("a", "p", True, 1, 1, ()), TagSpec("b", "p", False, 0, 1, ()))


def test_all_mistakes_at_once() -> None:
    value = {
        "versoin": "1",
        "tags": [
            {"name": "think", "purpose": "p"},
            {"name": "Think", "purpose": "p"},
            {"name": "9lives", "purpose": "p", "max_cuont": 3},
            {"name": "a", "purpose": " "},
            {"name": "a", "purpose": "p"},
            {"name": "b", "purpose": "p", "before": ["c"], "min_count": True},
            {"name": "c", "purpose": "p", "before": ["b"], "required": "yes"},
            {"name": "d", "purpose": "p", "before": ["d"], "min_count": 2, "max_count": 1},
            {"name": "examine", "purpose": "p", "before": ["exmaine", 3]},
            "conclude",
            {"purpose": "p"},
            {"name": "new\nline", "purpose": "p", "min_count": -1},
            {"name": "zero", "purpose": "p", "max_count": 0},
        ],
    }
    with pytest.raises(TagprError) as error:
        schema_from_mapping(value, where="my.yaml")
    message = str(error.value)
    assert message.startswith("my.yaml: ")
    for part in (
        "versoin: unknown key; did you mean 'version'?",
        "version: expected text",
        "tag 'think': the name is reserved",
        "tag 'Think': the name is reserved",
        "tag '9lives': bad name",
        "tags[2].max_cuont: unknown key; did you mean 'max_count'?",
        "tags[3].purpose: empty",
        "tag 'a' is defined 2 times",
        "tags[5].min_count: expected a whole number, got True",
        "tags[6].required: expected true or false, got 'yes'",
        "tag 'd': max_count 1 is below 2",
        "tag 'd': required=False with min_count=2",
        "tags[8].before: expected a list of tag names",
        "before names unknown tag 'exmaine'; did you mean 'examine'?",
        "tags[9]: expected a mapping, got str 'conclude'",
        "tags[10]: missing key 'name'",
        "tag 'new\\nline': bad name",
        "tag 'new\\nline': min_count -1 is below 0",
        "tag 'zero': max_count 0 is below 1",
        "before has a cycle",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    "tags, mistake",
    [
        ([{"name": "a", "before": ["b", "b"]}, {"name": "b"}], "tag 'a': before names 'b' 2 times"),
        ([{"name": "a", "min_count": 40, "required": True}, {"name": "b", "min_count": 25, "required": True}],
         "min_count are 65 steps together; a thought has at most 64"),
        ([{"name": "a", "before": ["a"]}], "before has a cycle: a -> a"),
    ],
)  # fmt: skip
def test_what_no_thought_can_meet_or_says_a_thing_twice_is_refused(tags: list[dict[str, Any]], mistake: str) -> None:
    value = {"version": "1", "tags": [{"purpose": "p", **tag} for tag in tags]}
    with pytest.raises(TagprError) as error:
        schema_from_mapping(value, where="my.yaml")
    assert mistake in str(error.value)


def test_cycle_names_its_tags_in_order() -> None:
    tags = [
        {"name": "a", "purpose": "p", "before": ["b"]},
        {"name": "b", "purpose": "p", "before": ["c"]},
        {"name": "c", "purpose": "p", "before": ["a"]},
    ]
    with pytest.raises(TagprError) as error:
        schema_from_mapping({"version": "1", "tags": tags}, where="x")
    cycle = str(error.value).split("cycle: ")[1].split(" -> ")
    assert cycle[0] == cycle[-1]
    assert {f"{x}{y}" for x, y in pairwise(cycle)} == {"ab", "bc", "ca"}


@pytest.mark.parametrize("value", [None, [], "text", {}, {"version": "1"}, {"version": "1", "tags": []}, 3])
def test_wrong_shapes(value: object) -> None:
    with pytest.raises(TagprError, match="mistake"):
        schema_from_mapping(value, where="x")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match="no such file"):
        load_schema(tmp_path / "none.yaml")
    with pytest.raises(TagprError, match=r"\.yaml, \.yml or \.json"):
        load_schema(tmp_path / "schema.toml")
    for name, text in {
        "broken.yaml": "tags: [",
        "broken.json": "{",
        "twice.yaml": "version: '1'\nversion: '2'\ntags: []",
        "twice.json": '{"version": "1", "version": "2"}',
        "nested.yaml": "version: '1'\ntags:\n- {name: a, name: b, purpose: p}",
        "object.yaml": "!!python/object/apply:os.getcwd []",
        "date.yaml": "version: 2024-02-30",
    }.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TagprError, match=r"YAML|JSON|given twice|plain value|date") as error:
            load_schema(path)
        assert str(path) in str(error.value)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"version: '\xe9'")
    with pytest.raises(TagprError, match="UTF-8"):
        load_schema(latin)


def test_code_building_an_inconsistent_schema_raises_value_error() -> None:
    with pytest.raises(ValueError, match="before names unknown tag 'b'"):
        TagSchema("1", (TagSpec("a", "p", before=("b",)),))
    with pytest.raises(ValueError, match="no tags"):
        TagSchema("1", ())


def test_before_names_each_tag_once() -> None:
    with pytest.raises(ValueError, match="tag 'a': before names a tag twice: b, b"):
        TagSchema("1", (TagSpec("a", "x", before=("b", "b")), TagSpec("b", "y")))
