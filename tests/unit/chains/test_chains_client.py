"""The client of OpenAI-compatible endpoints, against a server on loopback that counts."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from chat_server import AGAIN, FINAL, PAID, UNSURE, log_of, schedule, serving

from tagpr_rl.chains.client.answers import AnswerCache, question_key
from tagpr_rl.chains.client.attempt import backoff, retry_after
from tagpr_rl.chains.client.body import BadBodyError, read_body
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.chains.client.spend import most_tokens
from tagpr_rl.chains.client.usage import MeteredLabeller, MeteredTeacher
from tagpr_rl.chains.models import Generators, labeller_for, teacher_for
from tagpr_rl.chains.teachers.interface import TEACHER_INSTRUCTION, TeacherRequest
from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.config import ChainsStage, recipe_from_dict
from tagpr_rl.config.endpoints import EndpointBlock, RetryBlock
from tagpr_rl.stages.chains import require_budget
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, Prompt, TagprError

QUICK = {"times": 4, "first_wait_s": 0.02, "longest_wait_s": 0.1}


def block_for(base_url: str, **changes: Any) -> EndpointBlock:
    raw = {"kind": "openai", "base_url": base_url, "model": "m", "retries": QUICK, "concurrency": 64}
    return EndpointBlock.model_validate(raw | changes)


def ask(n: int, first: int = 0, **changes: Any) -> list[ChatRequest]:
    return [ChatRequest(({"role": "user", "content": f"question #{i}"},), **changes) for i in range(first, first + n)]


def generate(base_url: str, path: Path, requests: list[ChatRequest], **changes: Any) -> list[Reply]:
    with AnswerCache(path) as cache:
        return OpenAIGenerator(block_for(base_url, **changes), cache, account="p").generate(requests)


def mistake(base_url: str, path: Path, requests: list[ChatRequest] | None = None, **changes: Any) -> str:
    with pytest.raises(TagprError) as caught:
        generate(base_url, path, requests or ask(20), **changes)
    return str(caught.value)


@pytest.mark.slow
def test_two_thousand_requests_with_a_tenth_faulty_are_all_accounted_for(tmp_path: Path) -> None:
    """Each reply's status follows from the last thing that the server did with its question, token counts are the
    server's own sums, and what may have been charged is the bound of each attempt that ended without an answer."""
    n, attempts = 2000, QUICK["times"] + 1
    requests = ask(n)
    with serving(seed=4, faulty=0.1) as url:
        replies = generate(url, tmp_path / "a", requests, timeouts={"attempt_s": 6})
        log = log_of(url)
        again = generate(url, tmp_path / "a", requests[:1000], timeouts={"attempt_s": 6})
        later = log_of(url)
    final = {"ok": "OK", "wrong_indexes": "OK", "empty": "EMPTY", "length": "LENGTH", "400": "REFUSED"}
    assert set(log["begun"]) == set(range(n))
    for i, reply in enumerate(replies):
        kinds = log["begun"][i]
        assert reply.status == final.get(kinds[-1], "FAILED"), (i, kinds, reply)
        assert all(kind in AGAIN for kind in kinds[:-1])
        assert len(kinds) <= attempts and (len(kinds) == attempts or kinds[-1] not in AGAIN)
        assert bool(reply.detail) == (reply.status != "OK")
        if kinds[-1] in ("ok", "wrong_indexes", "length"):
            assert json.loads(reply.text)["number"] == i
    # By hand from the schedule alone: what each question must end as.
    wanted: Counter[str] = Counter()
    for i in range(n):
        kind, times = schedule(4, i, 0.1)
        wanted[final["ok"] if kind in AGAIN and times < attempts else final.get(kind, "FAILED")] += 1
    assert Counter(reply.status.value for reply in replies) == wanted
    served = Counter(kind for kinds in log["begun"].values() for kind in kinds)
    assert all(served[kind] for kind in (*AGAIN, *FINAL))
    assert 150 < sum(kinds != ["ok"] for kinds in log["begun"].values()) < 250
    assert log["most_in_flight"] <= 64
    assert sum(reply.prompt_tokens for reply in replies) == log["usage"][0] == 2 * sum(served[k] for k in PAID)
    with AnswerCache(tmp_path / "a") as cache:
        spent = cache.spent("p")
        assert len(cache) == served["ok"] + served["wrong_indexes"]
    assert [later["usage"][0], later["usage"][1]] == [spent.prompt_tokens, spent.completion_tokens]
    # What is no answer is asked again: rejected, failed, empty and cut questions.
    requested = {i for i in range(1000) if len(later["begun"][i]) > len(log["begun"][i])}
    assert requested == {i for i in range(1000) if replies[i].status != "OK"}
    assert all(reply.cached == (i not in requested) for i, reply in enumerate(again))
    unsure = sum(sum(most_tokens(requests[i])) * sum(k in UNSURE for k in kinds) for i, kinds in later["begun"].items())
    assert spent.unsure_tokens == unsure > 0


def run_client(base_url: str, path: str, n: int) -> None:
    """The process that is killed."""
    generate(base_url, Path(path), ask(n), concurrency=16)


@pytest.mark.slow
def test_nothing_committed_is_asked_again_after_twenty_kills(tmp_path: Path) -> None:
    """SIGKILL at 20 random moments. The server counts: a question is asked again only if it was in flight at a kill,
    at most `concurrency` per kill, and with the same idempotency key, so that a server that honours it charges once.
    A worker that took its next question before it committed its answer would make it more."""
    n, concurrency, path = 1500, 16, tmp_path / "answers"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tagpr_rl.chains.client.openai_client"])
    rng = Random(11)
    in_flight: list[int] = []
    done: set[int] = set()
    with serving(latency_s=0.02) as url:
        keys = {question_key("m", request, {"base_url": url}): i for i, request in enumerate(ask(n))}
        for _ in range(20):
            before = {i: len(kinds) for i, kinds in log_of(url)["begun"].items()}
            process = context.Process(target=run_client, args=(url, str(path), n))
            process.start()
            until = time.monotonic() + 30
            while sum(map(len, log_of(url)["begun"].values())) == sum(before.values()) and time.monotonic() < until:
                assert process.is_alive(), "the client ended by itself: give it more questions"
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.12))
            process.kill()
            process.join()
            assert process.exitcode == -9
            time.sleep(0.1)  # the server ends what it began
            log = log_of(url)
            assert log["in_flight"] == 0
            with AnswerCache(path) as cache:
                committed = {keys[key] for key in cache.get_many(list(keys))}
            begun = {i for i, kinds in log["begun"].items() if len(kinds) > before.get(i, 0)}
            assert not begun & done, "asked again although it was committed"
            assert committed >= done
            done = committed
            in_flight.append(len(begun - committed))
        replies = generate(url, path, ask(n), concurrency=concurrency)
        log = log_of(url)
    assert all(reply.status == "OK" and json.loads(reply.text)["number"] == i for i, reply in enumerate(replies))
    twice = sum(log["sent"].values()) - n
    assert twice == sum(in_flight), "exactly those in flight at a kill were asked again"
    assert twice > 0 and log["charges"] == n, "none was paid for twice"
    assert max(in_flight) <= concurrency
    assert len(done) > 0 and sum(reply.cached for reply in replies) == len(done)
    print(f"\n{twice} of {n + twice} answers were in flight at one of 20 kills and were asked for again: {in_flight}")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"tokens": 3000}, {"money": 0.3}])
def test_a_spent_budget_stops_cleanly_and_more_goes_on(tmp_path: Path, limit: dict[str, float]) -> None:
    """A reply is 2 + 15 tokens; the bound of one is 17 bytes + 2 * 32 + max_tokens 24 = 105."""
    requests = ask(900, first=100, max_tokens=24)
    assert {most_tokens(request) for request in requests} == {(81, 24)}
    prices = {"prompt": 100.0, "completion": 100.0}  # 0.3 buys 3,000 tokens
    with serving(latency_s=0.005) as url:
        first = generate(url, tmp_path / "a", requests, prices=prices, budget=limit)
        log = log_of(url)
        counts = Counter(reply.status.value for reply in first)
        assert set(counts) == {"OK", "BUDGET"}
        assert counts["OK"] == sum(log["sent"].values()) == sum(map(len, log["begun"].values()))
        assert 3000 - 105 < 17 * counts["OK"] == sum(log["usage"]) <= 3000  # not overshot, and no whole bound unspent
        assert "raise the budget" in next(r.detail for r in first if r.status == "BUDGET")
        same = generate(url, tmp_path / "a", requests, prices=prices, budget=limit)
        assert [r.status for r in same] == [r.status for r in first] and log_of(url)["sent"] == log["sent"]
        more = {key: 10 * value for key, value in limit.items()}
        last = generate(url, tmp_path / "a", requests, prices=prices, budget=more)
        assert {reply.status.value for reply in last} == {"OK"}
        assert sum(log_of(url)["sent"].values()) == 900
        assert [r.cached for r in last] == [r.status == "OK" for r in first]


@pytest.mark.slow
def test_retry_after_holds_every_request_back(tmp_path: Path) -> None:
    """Every attempt gets a 429 with one second: attempts come in bursts, at most one per worker, a second apart."""
    with serving(always="429", retry_after=1) as url:
        replies = generate(url, tmp_path / "a", ask(8), concurrency=4, retries=QUICK | {"times": 1})
        times = sorted(log_of(url)["times"])
        assert {reply.status.value for reply in replies} == {"FAILED"} and "HTTP 429: slow down" in replies[0].detail
        gaps = [b - a for a, b in pairwise(times)]
        assert len(times) == 16 and all(gap < 0.4 or gap > 0.95 for gap in gaps)
        assert sum(gap > 0.95 for gap in gaps) >= 3
    with serving(always="429", retry_after=3600) as url:
        assert "asks to wait 3600 s" in mistake(url, tmp_path / "b", timeouts={"request_s": 60})


def test_time_outs(tmp_path: Path) -> None:
    with serving(always="slow", slow_s=30) as url:
        start = time.monotonic()
        limits = {"attempt_s": 0.2, "request_s": 0.5}
        reply = generate(url, tmp_path / "a", ask(1), timeouts=limits, retries=QUICK | {"times": 99})[0]
        assert reply.status == "FAILED" and "0.2 s" in reply.detail and time.monotonic() - start < 5
    with serving(latency_s=0.3) as url:
        replies = generate(url, tmp_path / "b", ask(50), concurrency=2, timeouts={"total_s": 0.5})
        counts = Counter(reply.status.value for reply in replies)
        assert counts == {"OK": 4, "FAILED": 46} and "total_s" in replies[-1].detail  # two rounds begin within 0.5 s


@pytest.mark.slow
def test_a_mistake_for_all_is_one_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret-0123456789"
    with serving(key=key, model="good-model") as url:
        monkeypatch.setenv("OTHER_KEY", "sk-wrong-key-987")
        text = mistake(url, tmp_path / "a", api_key_env="OTHER_KEY")
        assert "401" in text and url in text and "$OTHER_KEY" in text and "sk-" not in text
        assert len(log_of(url)["times"]) <= 64  # one round, no retries
        monkeypatch.setenv("GOOD_KEY", key)
        text = mistake(url, tmp_path / "a", api_key_env="GOOD_KEY", model="bad")
        assert "404" in text and url in text and "good-model" in text
        text = mistake(url, tmp_path / "a", api_key_env="NOT_SET")
        assert "NOT_SET" in text and "export" in text
        assert generate(url, tmp_path / "a", ask(3), api_key_env="GOOD_KEY", model="good-model")[2].status == "OK"
    assert key.encode() not in (tmp_path / "a").read_bytes()
    with serving(key=key, always="400") as url:  # its message repeats the key
        reply = generate(url, tmp_path / "b", ask(1), api_key_env="GOOD_KEY")[0]
        assert reply.status == "REFUSED" and "***" in reply.detail and key not in reply.detail
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        text = mistake(nowhere, tmp_path / "a")
        assert nowhere in text and "no connection" in text
    assert "http://no-such-host.invalid/v1" in mistake("http://no-such-host.invalid/v1", tmp_path / "a")


def test_a_server_that_goes_away_ends_the_call_and_keeps_answers(tmp_path: Path) -> None:
    with serving(always="closed") as url:  # connections that break are tried again and then counted
        replies = generate(url, tmp_path / "a", ask(3))
        assert {reply.status.value for reply in replies} == {"FAILED"} and "connection broke" in replies[0].detail


def test_equal_requests_are_one_question(tmp_path: Path) -> None:
    with serving() as url:
        replies = generate(url, tmp_path / "a", [*ask(2), *ask(2), *ask(1, seed=5)])
        assert [len(kinds) for kinds in log_of(url)["begun"].values()] == [2, 1]
    assert [reply.cached for reply in replies] == [False, False, True, True, False]


def test_the_body_on_the_wire(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"steps": {"type": "array"}}}
    request = ask(1, temperature=0.5, max_tokens=7, seed=3, json_schema=schema)
    with serving() as url:
        generate(url, tmp_path / "a", request, extra_body={"top_k": 4})
        body = log_of(url)["bodies"][-1]
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "question #0"}],
        "temperature": 0.5, "max_tokens": 7, "seed": 3, "top_k": 4,
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}},
    }  # fmt: skip


def test_a_recipe_s_teacher_and_labeller_are_models(tmp_path: Path) -> None:
    """Through the stage's own functions: texts by prompt, one file of answers under `out`, one budget per role."""
    records = [LampRecord(f"r{i}", "LaMP_2", "train", "u", f"description: #{i}", ()) for i in range(3)]
    prompts = [Prompt(r.id, "LaMP_2", "u", ({"role": "user", "content": r.input},), (), 0, False, 1) for r in records]
    requests = [TeacherRequest(record, prompt) for record, prompt in zip(records, prompts, strict=True)]
    with serving() as url:
        block = {"kind": "openai", "base_url": url, "model": "m", "max_tokens": 30, "budget": {"tokens": 4000}}
        chains = {"kind": "chains", "teacher": block, "labeller": {**block, "budget": {"tokens": 100}}}
        stages = {"data": {"kind": "data"}, "model": {"kind": "model"}, "chains": chains}
        recipe = recipe_from_dict({"name": "r", "out": str(tmp_path), "stages": stages}, source="r")
        stage = recipe.stages["chains"]
        assert isinstance(stage, ChainsStage)
        with Generators(recipe, stage, make_engine=lambda *_: pytest.fail("no engine for an endpoint")) as models:
            teacher = MeteredTeacher(teacher_for(recipe, models=models))
            labeller = MeteredLabeller(labeller_for(stage, models))
            replies = teacher.generate(requests)
            assert [json.loads(reply.text)["number"] for reply in replies] == [0, 1, 2]
            require_budget("chains", stage, teacher, labeller)
            [unpaid] = labeller.label([["step #7"]], default_schema())
            assert unpaid.status == ReplyStatus.BUDGET and "0 of budget.tokens 100 are spent" in unpaid.detail
            with pytest.raises(TagprError, match=r"'chains': the budget is spent; .* 1 of the labeller.*raise budget"):
                require_budget("chains", stage, teacher, labeller)
            require_budget("chains", stage.model_copy(update={"accept_partial": True}), teacher, labeller)
            assert (models.spent("teacher").completion_tokens, models.spent("labeller").tokens) == (45, 0)
        requested = log_of(url)["bodies"]
    assert len(requested) == 3 and requested[0]["messages"][0] == {"role": "system", "content": TEACHER_INSTRUCTION}
    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        assert cache.spent("r/teacher").completion_tokens == 45 and cache.spent("r/labeller").tokens == 0
    assert isinstance(teacher_for(recipe, error_rate=0.5), ScriptedTeacher), "the model stage asks nobody for words"


def completion(message: dict[str, Any], finish: str | None = "stop", **rest: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **rest}).encode()


@pytest.mark.parametrize(
    "message, finish, text, status",
    [
        ({"content": "a"}, "stop", "a", "OK"),
        ({"content": "a"}, "EOS_token", "a", "OK"),
        ({"content": "a"}, "max_tokens", "a", "LENGTH"),
        ({"content": "a"}, "length", "a", "LENGTH"),
        ({"content": None}, "length", "", "LENGTH"),
        ({"content": None}, "stop", "", "EMPTY"),
        ({"content": " \n"}, "stop", " \n", "EMPTY"),
        ({"content": "a", "reasoning_content": "t\n"}, "stop", "<think>\nt\n</think>\n\na", "OK"),
        ({"content": "a", "reasoning": "t"}, "stop", "<think>\nt\n</think>\n\na", "OK"),
        ({"content": "<think>t</think>a", "reasoning": "t"}, "stop", "<think>t</think>a", "OK"),
        ({"content": "", "reasoning": "t"}, "stop", "<think>\nt\n</think>\n\n", "EMPTY"),
        ({"content": "</think>a", "reasoning": "t"}, "stop", "<think>\nt\n</think>\n\na", "OK"),
        ({"content": "<think>t\nAnswer: a"}, "stop", "<think>t\nAnswer: a", "EMPTY"),
        ({"content": "<think>t</think>\n"}, "stop", "<think>t</think>\n", "EMPTY"),
        ({"content": "\u200b"}, "stop", "\u200b", "EMPTY"),
        ({"content": "a"}, "content_filter", "a", "REFUSED"),
        ({"content": "a"}, "SAFETY", "a", "REFUSED"),
        ({"content": None, "refusal": "no"}, "stop", "", "REFUSED"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "stop", "", "REFUSED"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", "ab", "OK"),
        ({"content": ["a", {"type": "output_text", "text": {"value": "b", "annotations": []}}]}, "stop", "ab", "OK"),
        ({"content": {"type": "text", "text": "a"}}, "stop", "a", "OK"),
        ({"content": {"parts": [{"text": "a"}]}}, "stop", "a", "OK"),
        ({"content": {"steps": []}}, "stop", '{"steps": []}', "OK"),
        ({"content": []}, "stop", "", "EMPTY"),
        ({"content": {}}, "stop", "", "EMPTY"),
        ({"content": "a"}, "FINISH_REASON_STOP", "a", "OK"),
        ({"content": "a"}, "content-filter", "a", "REFUSED"),
        ({"content": "a"}, "model_context_window_exceeded", "a", "LENGTH"),
        ({"content": None, "output_text": "a"}, "stop", "a", "OK"),
        ({"content": [{"type": "thinking", "thinking": [{"text": "t"}]}, {"type": "text", "text": "a"}]}, "stop",
         "<think>\nt\n</think>\n\na", "OK"),
        ({"content": "a", "reasoning": {"summary": [{"type": "summary_text", "text": "t"}]}}, "stop",
         "<think>\nt\n</think>\n\na", "OK"),
        ({"content": "a", "reasoning": None, "reasoning_details": [
            {"type": "reasoning.encrypted", "data": "x"}, {"type": "reasoning.text", "text": "t"}]}, "stop",
         "<think>\nt\n</think>\n\na", "OK"),
    ],
)  # fmt: skip
def test_bodies_that_are_answers(message: dict[str, Any], finish: str | None, text: str, status: str) -> None:
    reply, known = read_body(completion(message, finish, usage={"prompt_tokens": 3, "completion_tokens": 4}))
    assert (reply.text, reply.status, reply.prompt_tokens, reply.completion_tokens, known) == (text, status, 3, 4, True)
    assert not read_body(completion(message, finish, usage={"prompt_tokens": "3"}))[1]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"<!DOCTYPE html>", b"\xff\xfe", b"{}", b'{"choices": []}', b'{"choices": [{}]}',
     b'{"choices": [3]}', b'{"error": {"message": "x"}}', completion({"content": [1]}), b"[" * 100_000,
     completion({"content": 1}),
     completion({"content": [{"type": "image_url", "image_url": {}}]}), completion({"content": "a"}, None),
     completion({"content": "a"}, "error"), completion({"content": "a"}, "abort"), completion({"content": "a"}, ""),
     completion({"content": "a"}, "repetition"), completion({"content": None}, "tool_calls"),
     completion({"content": "a"}, "stop", error={"code": 502}), completion({"content": "a", "error": "cut"}),
     completion({"content": "a\ud800"}), completion({"content": None, "refusal": "\udfff"})],
)  # fmt: skip
def test_bodies_that_are_not(content: bytes) -> None:
    with pytest.raises(BadBodyError):
        read_body(content)


def test_a_gateway_s_stop_may_hide_the_token_limit_and_counts_out_of_reason_are_none() -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "native_finish_reason": "MAX_TOKENS"}
    usage = {"prompt_tokens": 10**30, "completion_tokens": 1}
    reply, known = read_body(json.dumps({"choices": [choice], "usage": usage}).encode())
    assert (reply.status, reply.prompt_tokens, known) == ("LENGTH", 0, False)


@pytest.mark.parametrize("finish", ["error", "abort"])
def test_a_text_that_broke_off_is_ordered_again_and_never_kept(tmp_path: Path, finish: str) -> None:
    """Three attempts, each an order of its own: a provider that honours the idempotency key would send the same cut
    text again. All three count as charged, and the next run asks again."""
    path = tmp_path / "a"
    with serving(finish=finish, message='{"content": "a\\nb\\nc\\nAnswer: Ten ways to save mon"}') as url:
        reply = generate(url, path, ask(1), retries=QUICK | {"times": 2})[0]
        key = question_key("m", ask(1)[0], {"base_url": url}).hex()
        assert log_of(url)["orders"] == [key, f"{key}-1", f"{key}-2"]
    assert (reply.status, reply.text) == ("FAILED", "") and f"'{finish}'" in reply.detail
    with AnswerCache(path) as cache:
        assert len(cache) == 0 and cache.spent("p").unsure_tokens == 3 * sum(most_tokens(ask(1)[0]))
    with serving(message='{"content": "a"}') as url:
        assert generate(url, path, ask(1))[0].text == "a"


def test_only_a_thought_is_said_to_be_one_and_asked_again_after_a_repair(tmp_path: Path) -> None:
    path, thought = tmp_path / "a", "a\nb\nc\nAnswer: comedy"
    with serving(message=json.dumps({"content": None, "reasoning_content": thought})) as url:
        reply = generate(url, path, ask(1))[0]
    assert reply.status == "EMPTY" and "only a thought came" in reply.detail
    with AnswerCache(path) as cache:
        paid = cache.spent("p").prompt_tokens
        assert paid == 2
    with serving(message=json.dumps({"content": thought})) as url:
        again = generate(url, path, ask(1))[0]
        assert generate(url, path, ask(1))[0].cached and sum(map(len, log_of(url)["begun"].values())) == 1
    assert (again.text, again.status, again.cached) == (thought, "OK", False)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:00:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, datetime(2026, 10, 21, 7, 27, 30, tzinfo=UTC)) == seconds


def test_backoff_doubles_up_to_a_limit_and_is_spread_over_its_range() -> None:
    rules, rng = RetryBlock(first_wait_s=1.0, longest_wait_s=10.0), Random(3)
    for attempt, most in enumerate([1.0, 2.0, 4.0, 8.0, 10.0, 10.0]):
        waits = [backoff(attempt, rules, rng) for _ in range(2000)]
        assert max(waits) <= most and max(waits) > 0.99 * most and min(waits) < 0.01 * most
        assert sum(waits) / len(waits) == pytest.approx(most / 2, rel=0.05)
