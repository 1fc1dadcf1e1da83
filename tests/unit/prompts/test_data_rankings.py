"""Rankings on file, embeddings on disk, and how both reach a prompt's items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tagpr_rl.config import recipe_from_dict
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.model.embeddings import EmbeddingStore
from tagpr_rl.prompts.rankings import read_rankings, write_rankings
from tagpr_rl.prompts.retrieve import Retriever
from tagpr_rl.types import LampRecord, ProfileItem, TagprError


def reviews(key: str, texts: list[str], query: str = "q", item_ids: list[str] | None = None) -> LampRecord:
    item_ids = item_ids or [f"{key}{n}" for n in range(len(texts))]
    items = tuple(ProfileItem(i, {"text": text, "score": "3"}) for i, text in zip(item_ids, texts, strict=True))
    return LampRecord(key, "LaMP_3", "dev", key, TASKS["LaMP_3"].make_input(text=query), items)


def ids(items: tuple[ProfileItem, ...]) -> list[str]:
    return [item.id for item in items]


def test_rankings_round_trip_in_upstreams_shape(tmp_path: Path) -> None:
    records = [reviews("7", ["a", "red lamp", "red"], "red lamp"), reviews("8", []), reviews("9", ["x"])]
    path = tmp_path / "LaMP_3.json"
    assert write_rankings(path, records, Retriever(99, "bm25", ties="position")) == 3
    assert json.loads(path.read_text()) == {"7": ["71", "72", "70"], "8": [], "9": ["90"]}
    for where in (path, tmp_path):
        retrieve = Retriever(2, "file", rankings=read_rankings(where, ["LaMP_3"]))
        assert [ids(retrieve(record)) for record in records] == [["71", "72"], [], ["90"]]


def test_an_id_that_stands_twice_in_a_profile() -> None:
    record = reviews("7", ["a", "b", "c"], item_ids=["1", "2", "1"])
    chosen = Retriever(9, "file", rankings={("LaMP_3", "7"): ["1", "2", "1"]})(record)
    assert [item.fields["text"] for item in chosen] == ["a", "b", "c"]
    with pytest.raises(TagprError, match="record '7': the rankings name item '2', which its profile of 3 items"):
        Retriever(9, "file", rankings={("LaMP_3", "7"): ["2", "2"]})(record)


def test_rankings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match="LaMP_3 record '7': the rankings do not name it"):
        Retriever(9, "file", rankings={})(reviews("7", ["a"]))
    path = tmp_path / "r.json"
    for text, message in (
        ("[1]", "not an object of question id"),
        ('{"7": "a"}', "question '7': expected a list of item ids, got 'a'"),
        ('{"7": [["a"]]}', "question '7': expected a list of item ids"),
        ("<html>", "holds HTML"),
    ):
        path.write_text(text)
        with pytest.raises(TagprError, match=message):
            read_rankings(path, ["LaMP_3"])
    with pytest.raises(TagprError, match=r"one rankings file for 2 tasks.*LaMP_3\.json, LaMP_4\.json"):
        read_rankings(path, ["LaMP_3", "LaMP_4"])
    with pytest.raises(TagprError, match="question id '7' stands twice"):
        write_rankings(path, [reviews("7", []), reviews("7", [])], Retriever(1))


class Letters:
    """An encoder for tests: how often a, b and c occur."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.seen += texts
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)


def test_dense_ranks_by_dot_product_and_encodes_each_text_once(tmp_path: Path) -> None:
    encode = Letters()
    store = EmbeddingStore(tmp_path / "e", encode)
    record = reviews("7", ["a", "aab", "c", "a"], "ab")  # dot products with (1, 1, 0): 1, 3, 0, 1
    retrieve = Retriever(4, "dense", ties="position", similarity=store.similarity)
    assert ids(retrieve(record)) == ["71", "70", "73", "72"]
    assert sorted(encode.seen) == ["a", "aab", "ab", "c"]
    again = EmbeddingStore(tmp_path / "e")  # no encoder: all from disk
    assert Retriever(4, "dense", ties="position", similarity=again.similarity)(record) == retrieve(record)
    assert (store.encoded, again.encoded) == (4, 0)
    with pytest.raises(TagprError, match="1 texts have no embedding there, first 'new'"):
        again.get(["a", "new"])


def test_damaged_embeddings_are_named(tmp_path: Path) -> None:
    EmbeddingStore(tmp_path, Letters()).prepare(["a"])
    [path] = [p for p in tmp_path.glob("*.npy") if ".keys" not in p.name]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TagprError, match=f"{path.name}: damaged embeddings"):
        EmbeddingStore(tmp_path)
    with pytest.raises(TagprError, match="not finite for the text 'a'"):
        EmbeddingStore(tmp_path / "new", lambda texts: np.full((len(texts), 2), np.nan, np.float32)).prepare(["a"])


def recipe(retrieval: dict[str, object], split: str = "user", controls: tuple[str, ...] = ("empty",)) -> None:
    stages = {
        "data": {"kind": "data"},
        "model": {"kind": "model"},
        "eval": {"kind": "evaluate", "models": ["model"], "controls": controls},
    }
    recipe_from_dict({"name": "x", "data": {"split": split, "retrieval": retrieval}, "stages": stages}, source="x")


def test_a_recipes_retrieval_must_be_possible() -> None:
    recipe({"method": "recency"}, split="time")
    recipe({"method": "file", "path": "r.json"})
    with pytest.raises(TagprError, match="recency needs dates, which only the time split has"):
        recipe({"method": "recency"})
    with pytest.raises(TagprError, match="method file with path=None: path belongs to method file"):
        recipe({"method": "file"})
    with pytest.raises(TagprError, match="method bm25 with encoder=e: encoder belongs to method dense"):
        recipe({"encoder": "e"})
    with pytest.raises(TagprError, match="shuffled profiles cannot be ranked by"):
        recipe({"method": "file", "path": "r.json"}, controls=("shuffled",))
