"""A chains stage's files: rejected chains, the data set's folder, and one clear error for each damage."""

from __future__ import annotations

import json
from pathlib import Path

import made_chains as made
import pyarrow.parquet as pq
import pytest

from tagpr_rl.chains.storage import (
    MARKER,
    publishing,
    read_rejected,
    read_stored,
    sft_table,
    write_dataset,
    write_rejected,
)
from tagpr_rl.files import sha256_file
from tagpr_rl.tags.schema import TagSchema, TagSpec, default_schema, load_schema
from tagpr_rl.types import TagprError

SCHEMA = default_schema()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made.write_files(tmp_path / "stage")
    return tmp_path / "stage"


def test_rejected_chains_come_back_as_they_were(tmp_path: Path) -> None:
    write_rejected(tmp_path, made.REJECTED)
    first, second = read_rejected(tmp_path)
    assert first["text"] == made.REJECTED[0].text and first["reason"] == "WRONG_ANSWER"
    assert (second["record_id"], second["task"], second["user_id"], second["sample"]) == ("7", "LaMP_2", "u1", 1)
    write_rejected(tmp_path, [])
    assert read_rejected(tmp_path) == []


def test_messages_end_with_the_response_and_steps_say_the_same(folder: Path) -> None:
    rows = sft_table(read_stored(folder).chains, SCHEMA).to_pylist()
    assert list(rows[0]) == [
        "record_id", "task", "user_id", "messages", "steps", "answer", "correct", "sample",
    ]  # fmt: skip
    for row, before in zip(rows, made.CHAINS, strict=True):
        assert row["messages"] == [*before["messages"], {"role": "assistant", "content": before["response"]}]
    assert rows[3]["steps"][2] == {"tag": "infer_preference", "text": "the user prefers war films"}
    assert [len(row["steps"]) for row in rows] == [4] * 5


def test_another_schema_than_the_stages_is_refused(folder: Path) -> None:
    other = TagSchema("x", (TagSpec("guess", "Guess."),))
    with pytest.raises(TagprError, match="record '1' does not parse under tag schema 'x'"):
        sft_table(read_stored(folder).chains, other)


def test_the_folder_loads_in_datasets(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    front = (
        "---\nconfigs:\n- {config_name: chains, default: true, data_files: [{split: train, path: data/train-*.parquet}"
        "]}"
        "\n- {config_name: pairs, data_files: [{split: train, path: pairs/train-*.parquet}]}\n---\n"
    )
    target = write_dataset(
        tmp_path / "set", read_stored(folder), SCHEMA, {"README.md": front}, source={"stage": "chains"}, rows_per_file=2
    )
    assert sorted(path.name for path in (target / "data").iterdir()) == [
        f"train-0000{i}-of-00003.parquet" for i in range(3)
    ]
    chains = datasets.load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert chains["record_id"] == ["1", "2", "3", "4", "5"] and chains["correct"] == [True, True, True, False, True]
    assert chains[4]["messages"][-1]["content"] == made.CHAINS[4]["response"]
    pairs = datasets.load_dataset(str(target), "pairs", split="train", cache_dir=str(tmp_path / "cache"))
    assert pairs["kind"] == ["cross_profile", "cross_profile", "wrong"]


def test_the_marker_names_every_file_and_the_schema_comes_along(folder: Path, tmp_path: Path) -> None:
    target = write_dataset(tmp_path / "set", read_stored(folder), SCHEMA, {"a/b.txt": "x"}, source={"stage": "s"})
    marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
    files = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} - {MARKER}
    assert marker["stage"] == "s" and set(marker["files"]) == files
    assert {name: sha256_file(target / name) for name in files} == marker["files"]
    assert load_schema(target / "tag_schema.json").sha256 == SCHEMA.sha256


def test_without_pairs_there_is_no_folder_of_them(tmp_path: Path) -> None:
    made.write_files(tmp_path / "stage", pairs=False)
    stored = read_stored(tmp_path / "stage")
    assert stored.pairs is None
    assert not (write_dataset(tmp_path / "set", stored, SCHEMA, {}, source={}) / "pairs").exists()


def test_an_older_data_set_is_replaced_as_a_whole_and_nothing_else_is(folder: Path, tmp_path: Path) -> None:
    stored, target = read_stored(folder), tmp_path / "set"
    write_dataset(target, stored, SCHEMA, {"old.txt": "x"}, source={})
    write_dataset(target, stored, SCHEMA, {"new.txt": "x"}, source={})
    assert not (target / "old.txt").exists() and (target / "new.txt").is_file()
    with pytest.raises(TagprError, match="no chain was kept"):
        write_dataset(target, type(stored)(stored.facts, stored.chains.slice(0, 0), None), SCHEMA, {}, source={})
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "text.txt").write_text("precious")
    with pytest.raises(TagprError, match="was not written by this command; choose another folder"):
        write_dataset(other, stored, SCHEMA, {}, source={})
    assert [path.name for path in other.iterdir()] == ["text.txt"]


def test_a_failure_on_the_way_leaves_the_old_folder(tmp_path: Path) -> None:
    with publishing(tmp_path / "t", "m") as new:
        (new / "m").write_text("1")
    with pytest.raises(FileNotFoundError), publishing(tmp_path / "t", "m") as new:
        (new / "m").write_text((tmp_path / "nothing").read_text())
    assert (tmp_path / "t" / "m").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 4), path)


def drop_answer(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["answer"]), path)


@pytest.mark.parametrize(
    "name, damage, part",
    [
        ("chains.json", lambda p: p.unlink(), "chains.json is missing"),
        ("chains.json", lambda p: p.write_text("{"), "is not valid JSON"),
        ("chains.json", lambda p: p.write_text("[]"), "no whole number under 'kept'"),
        ("chains.parquet", lambda p: p.unlink(), "chains.parquet is missing"),
        ("chains.parquet", cut, "is not a whole parquet file"),
        ("chains.parquet", other_rows, "has 4 rows, but chains.json counts 5 kept chains"),
        ("chains.parquet", drop_answer, "has no column 'answer'"),
        ("pairs.parquet", lambda p: p.write_bytes(b""), "is not a whole parquet file"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(folder: Path, name: str, damage, part: str) -> None:
    damage(folder / name)
    with pytest.raises(TagprError, match="run the stage again") as caught:
        read_stored(folder)
    assert part in str(caught.value) and str(folder / name) in str(caught.value)


@pytest.mark.stack
@pytest.mark.torch
def test_verls_own_dataset_reads_it_and_trains_on_the_response_alone(folder: Path, tmp_path: Path) -> None:
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    from tagpr_rl.model.tiny import build_tokenizer

    texts = [text for row in made.CHAINS for text in (row["messages"][0]["content"], row["response"])]
    tokenizer, _ = build_tokenizer(texts, default_schema().names)
    target = write_dataset(tmp_path / "set", read_stored(folder), SCHEMA, {}, source={}, rows_per_file=3)
    files = [str(path) for path in sorted((target / "data").iterdir())]
    config = {"pad_mode": "no_padding", "max_length": 512, "truncation": "error"}
    actual = MultiTurnSFTDataset(files, tokenizer, config)
    assert len(actual) == 5
    for row, before in zip(actual, made.CHAINS, strict=False):
        trained = row["input_ids"][row["loss_mask"].bool()].tolist()
        words = " ".join(before["response"].split())  # the tiny tokenizer's chat template drops line breaks
        expected = tokenizer.encode(words, add_special_tokens=False)
        assert trained[: len(expected)] == expected
        assert trained[len(expected)] == tokenizer.eos_token_id and len(trained) <= len(expected) + 2
