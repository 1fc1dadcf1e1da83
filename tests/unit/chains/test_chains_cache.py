"""The answer cache, the ledger and the recipe's endpoint block."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
import zlib
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tagpr_rl.chains.client.answers import AnswerCache, Questions, question_key
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.spend import Ledger, Spend, most_tokens
from tagpr_rl.chains.client.usage import ReplyProgress
from tagpr_rl.config import dump_recipe, recipe_from_dict
from tagpr_rl.config.endpoints import PricesBlock, SpendBlock
from tagpr_rl.types import TagprError

HELLO = ChatRequest(({"role": "user", "content": "héllo"},), temperature=0.5, max_tokens=9, seed=2)


def test_the_key_is_the_canonical_question() -> None:
    """By hand: keys sorted, no white space, UTF-8 as it is, numbers typed."""
    text = (
        '{"extra":{},"json_schema":null,"max_tokens":9,"messages":[{"content":"héllo","role":"user"}],'
        '"model":"m","seed":2,"temperature":0.5}'
    )
    assert question_key("m", HELLO) == hashlib.sha256(text.encode()).digest()
    turned = ChatRequest(({"content": "héllo", "role": "user"},), 0.5, 9, 2)
    assert question_key("m", turned) == question_key("m", HELLO)
    zero = [ChatRequest(HELLO.messages, temperature=value) for value in (0, 0.0)]
    assert question_key("m", zero[0]) == question_key("m", zero[1])


def test_whatever_changes_the_answer_changes_the_key() -> None:
    others = [
        question_key("m2", HELLO),
        question_key("m", HELLO, {"top_k": 1}),
        *(
            question_key("m", ChatRequest(**{**as_dict(HELLO), **change}))
            for change in (
                {"temperature": 0.6}, {"max_tokens": 10}, {"seed": 3}, {"json_schema": {}},
                {"messages": ({"role": "system", "content": "héllo"},)}, {"messages": HELLO.messages * 2},
            )
        ),
    ]  # fmt: skip
    assert len({question_key("m", HELLO), *others}) == len(others) + 1


def as_dict(request: ChatRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ChatRequest.__slots__}


@pytest.mark.slow
@given(st.text(), st.sampled_from(ReplyStatus), st.integers(0, 9), st.integers(0, 9))
def test_what_is_put_comes_back_if_it_is_of_use(
    tmp_path_factory: pytest.TempPathFactory, text: str, status: ReplyStatus, a: int, b: int
) -> None:
    path, text = tmp_path_factory.mktemp("cache") / "a", f"a {text}"
    with AnswerCache(path) as cache:
        cache.put("m", [(b"k", Reply(text, status, a, b, detail="d"))])
    with AnswerCache(path) as cache:
        wanted = {b"k": Reply(text, status, a, b, True, "d")} if status is ReplyStatus.OK else {}
        assert cache.get_many([b"k", b"other"]) == wanted


@pytest.mark.parametrize(
    "text, status",
    [
        ("", "EMPTY"),
        ("no", "REFUSED"),
        ("a\nb", "LENGTH"),
        ("<think>\na\nAnswer: b", "OK"),
        ("<think>\na</think>\n", "OK"),
    ],
)
def test_a_file_of_an_earlier_release_heals_and_keeps_what_was_paid(tmp_path: Path, text: str, status: str) -> None:
    """The row is written as the release before wrote it."""
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("m", [(b"k", Reply("good"))], "p", Spend(1, 2, 3, 0.5))
        crc = zlib.crc32(f"{status}/0/7/{text}".encode())
        cache._db.execute("UPDATE answers SET text=?, status=?, completion_tokens=7, crc=?", (text, status, crc))
    with AnswerCache(tmp_path / "a") as cache:
        assert cache.get_many([b"k"]) == {} and cache.spent("p") == Spend(1, 2, 3, 0.5)
        cache.put("m", [(b"k", Reply("good"))])
        assert cache.get_many([b"k"])[b"k"].text == "good" and len(cache) == 1


def test_failures_are_no_answers_and_the_first_answer_stays(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("m", [(b"1", Reply("", ReplyStatus.FAILED)), (b"2", Reply("", ReplyStatus.BUDGET))])
        assert len(cache) == 0
        cache.put("m", [(b"1", Reply("one"))], "p", Spend(1, 2, 3, 0.5))
        cache.put("m", [(b"1", Reply("two"))], "p", Spend(10, 20, 30, 5.0))
        assert cache.get_many([b"1"])[b"1"].text == "one"
        assert cache.spent("p") == Spend(11, 22, 33, 5.5) and cache.spent("p").tokens == 66
        assert cache.spent("another") == Spend()


WRITER = """
import sys
from pathlib import Path
from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import Reply
from tagpr_rl.chains.client.spend import Spend
with AnswerCache(Path(sys.argv[1])) as cache:
    for i in range(300):
        answers = [(f"{sys.argv[2]}/{i}".encode(), Reply(str(i))), (b"shared", Reply("s"))]
        cache.put("m", answers, "p", Spend(1, 0, 0, 0.25))
"""


@pytest.mark.slow
def test_two_processes_share_a_file(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "new" / "a"
    command = [sys.executable, "-c", WRITER, str(path)]
    processes = [subprocess.Popen([*command, name], cwd=root) for name in ("x", "y")]
    assert [process.wait() for process in processes] == [0, 0]
    with AnswerCache(path) as cache:
        assert len(cache) == 601
        assert cache.spent("p") == Spend(600, 0, 0, 150.0)
        assert cache.get_many([f"y/{i}".encode() for i in range(300)])[b"y/299"].text == "299"


def damaged(path: Path) -> str:
    with pytest.raises(TagprError) as caught, AnswerCache(path) as cache:
        cache.get_many([bytes([i]) * 32 for i in range(250)])
    return str(caught.value)


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database at all, but long enough to be read as the header of one " * 9, encoding="utf-8")
    assert str(text) in damaged(text) and "damaged" in damaged(text)
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE answers (x)")
    assert str(foreign) in damaged(foreign) and "no answer cache" in damaged(foreign)
    full = tmp_path / "full"
    with AnswerCache(full) as cache:
        cache.put("m", [(bytes([i]) * 32, Reply("hello there " * 50)) for i in range(250)])
    good = full.read_bytes()
    assert "hello" in AnswerCache(full).get_many([b"\7" * 32])[b"\7" * 32].text
    full.write_bytes(good.replace(b"hello", b"jello"))  # SQLite itself does not see this
    assert str(full) in damaged(full) and "checksum" in damaged(full)
    full.write_bytes(good[:4096] + b"\xa5" * 8192 + good[12288:])
    assert str(full) in damaged(full) and "damaged" in damaged(full)
    full.write_bytes(good[: len(good) // 2])
    assert str(full) in damaged(full)
    assert str(tmp_path) in damaged(tmp_path)  # a folder


def test_questions_ask_once_and_answer_all(tmp_path: Path) -> None:
    a, b, c = (ChatRequest(({"role": "user", "content": text},)) for text in "abc")
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("m", [(question_key("m", b), Reply("B"))])
        questions = Questions("m", [a, b, c, a, b], cache)
        assert list(questions.open.values()) == [a, c]
        failed = Reply("", ReplyStatus.FAILED)
        replies = questions.replies({question_key("m", a): Reply("A"), question_key("m", c): failed})
    assert [(reply.text, reply.cached) for reply in replies] == [
        ("A", False), ("B", True), ("", False), ("A", True), ("B", True)
    ]  # fmt: skip


def test_the_bound_by_hand() -> None:
    """Bytes of role and content, 32 per message and 32 for the reply; the schema's JSON."""
    assert most_tokens(HELLO) == (4 + 6 + 2 * 32, 9)  # é is two bytes
    assert most_tokens(ChatRequest(HELLO.messages, json_schema={"a": 1}))[0] == 4 + 6 + 2 * 32 + len('{"a": 1}')


def test_the_ledger_by_hand() -> None:
    ledger = Ledger(
        SpendBlock(tokens=100, money=1.0), PricesBlock(prompt=10_000, completion=20_000), Spend(10, 0, 0, 0.1)
    )
    assert ledger.hold(20, 10)  # 0.4: spent .1 + held .4
    assert not ledger.hold(20, 20), "0.1 + 0.4 + 0.6 is over 1.0"
    assert ledger.hold(30, 10)  # 0.5: exactly 1.0
    assert not ledger.hold(0, 1) and ledger.in_flight == 2
    assert ledger.release((20, 10), (15, 5)) == Spend(15, 5, 0, 0.25)
    assert ledger.release((30, 10), None) == Spend(0, 0, 40, 0.5)
    assert ledger.spent.tokens == 70 and ledger.spent.money == pytest.approx(0.85) and ledger.in_flight == 0
    assert not ledger.hold(31, 0) and ledger.hold(10, 0)
    assert ledger.release((10, 0), None, charged=False) == Spend()
    assert ledger.held.tokens == 0 and ledger.held.money == pytest.approx(0)


def test_progress_counts_and_is_silent_without_a_terminal() -> None:
    out = StringIO()
    with ReplyProgress("m", 2, Console(file=out)) as progress:
        progress.add(Reply("a", prompt_tokens=1200, completion_tokens=30), 0.5)
        progress.add(Reply("", ReplyStatus.FAILED), 0.5)
        figures = progress.figures()
    assert out.getvalue() == ""
    assert figures.startswith("1,200 in, 30 out, cost 0.5000, ") and figures.endswith("/s, 1 not OK")
    shown = StringIO()
    with ReplyProgress("m", 1, Console(file=shown, force_terminal=True, width=120)) as progress:
        progress.add(Reply("a", prompt_tokens=7), 0.0)
    assert "1/1" in shown.getvalue() and "7 in" in shown.getvalue()


OPENAI = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}


def recipe(**chains: Any) -> Any:
    stages = {"data": {"kind": "data"}, "model": {"kind": "model"}, "chains": {"kind": "chains", **chains}}
    return recipe_from_dict({"name": "r", "stages": stages}, source="r.yaml")


@pytest.mark.parametrize(
    "teacher",
    ["scripted", "heuristic", "auto", OPENAI, {"kind": "vllm", "model": "runs/x"}, {"kind": "scripted"},
     {**OPENAI, "prices": {"prompt": 1}, "budget": {"money": 2}, "retries": {"times": 0}, "extra_body": {"top_k": 2}}],
)  # fmt: skip
def test_teachers_by_name_and_by_block(teacher: Any) -> None:
    actual = recipe(teacher=teacher)
    dumped = json.loads(json.dumps(dump_recipe(actual)))
    assert recipe_from_dict(dumped, source="again") == actual
    if isinstance(teacher, str):
        assert actual.stages["chains"].teacher == teacher


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("teacher", "scriptet", "stages.chains.teacher: one of scripted"),
        ("teacher", {**OPENAI, "modle": 1}, "stages.chains.teacher.modle: unknown key; did you mean 'model'?"),
        ("teacher", {**OPENAI, "retries": {"tims": 1}}, "teacher.retries.tims: unknown key; did you mean 'times'?"),
        ("teacher", {"kind": "openai", "model": "m"}, "kind: openai needs base_url"),
        ("teacher", {"kind": "vllm"}, "kind: vllm needs model"),
        ("teacher", {"kind": "scripted", "model": "m"}, "kind: scripted does not use model"),
        ("teacher", {**OPENAI, "base_url": "https://me:pass@host/v1"}, "holds a login"),
        ("teacher", {**OPENAI, "base_url": "host/v1"}, "stages.chains.teacher.base_url"),
        ("teacher", {**OPENAI, "budget": {"money": 1}}, "budget.money needs `prices`"),
        ("labeller", {"kind": "heuristic"}, "labeller.kind is heuristic"),
        ("labeller", "auto", "stages.chains.labeller: one of scripted"),
    ],
)
def test_mistakes_in_a_block(key: str, value: Any, message: str) -> None:
    with pytest.raises(TagprError) as caught:
        recipe(**{key: value})
    assert message in str(caught.value)
    assert "<block>" not in str(caught.value) and "<name>" not in str(caught.value)
