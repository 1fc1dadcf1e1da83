"""The PRMU actors under Ray: batches of many callers, the scorer's own values, and what happens when they fail."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("torch")
pytestmark = pytest.mark.stack

import ray  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from tagpr_rl.backend.scoring import prmu_actor, prmu_client  # noqa: E402
from tagpr_rl.backend.scoring.prmu_client import ScorerPool  # noqa: E402
from tagpr_rl.backend.scoring.response_scorer import ResponseScorer, start_checker  # noqa: E402
from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig, new_model  # noqa: E402
from tagpr_rl.prmu.serving.requests import ScoreReply, ScoreRequest  # noqa: E402
from tagpr_rl.prmu.serving.score import Scorer  # noqa: E402
from tagpr_rl.prmu.users.vectors import UserTable  # noqa: E402
from tagpr_rl.reward.components import short_form  # noqa: E402
from tagpr_rl.types import TagprError  # noqa: E402

WORDS = ("<pad>", "<eos>", "<unk>", "red", "blue", "hat", "like", "take")
ASKS = [
    ScoreRequest(f"u{i % 7}", ("like red hat", "like blue")[: i % 3], "hat", "take red" + " blue" * (i % 5))
    for i in range(64)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PRMU on a random one-layer Qwen3."""
    root = tmp_path_factory.mktemp("prmu")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    config = Qwen3Config(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(root / "backbone")
    tokenizer.save_pretrained(root / "backbone")
    model, encoder = new_model(root / "backbone", PrmuModelConfig(heads=2), UserTable(["u0", "u1"]))
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(root / "prmu", encoder.tokenizer)
    return root / "prmu"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100 << 20)
    yield
    ray.shutdown()


def poison(folder: Path) -> None:
    """Replace the folder's weights by ones with a NaN."""
    model, encoder = PrmuModel.from_pretrained(folder)
    model.head.bias.data.fill_(math.nan)
    model.save_pretrained(folder, encoder.tokenizer)


def ask(pool: ScorerPool, requests: Sequence[ScoreRequest], after: float = 0.0, then: Any = None) -> list[ScoreReply]:
    """All replies; `then()` is called `after` seconds, while they are waited for."""

    async def run() -> list[ScoreReply]:
        tasks = [asyncio.create_task(pool.score(request)) for request in requests]
        if then is not None:
            await asyncio.sleep(after)
            then()
        return list(await asyncio.gather(*tasks))

    return asyncio.run(run())


def pid(actor: Any) -> int:
    return int(ray.get(actor.health.remote())["pid"])


def test_many_callers_get_the_scorer_s_values_in_few_batches(folder: Path) -> None:
    actor = prmu_actor.start("prmu_many", str(folder), max_wait_ms=20.0)
    ray.get(actor.health.remote())
    got = ray.get([ray.get_actor("prmu_many").score.remote(ask) for ask in ASKS])
    assert got == pytest.approx(Scorer(folder).score(ASKS), abs=1e-5)
    assert len({round(value, 6) for value in got}) > 5
    many = ray.get(actor.score_many.remote(ASKS[:9], 30.0))
    assert [reply.score for reply in many] == pytest.approx(got[:9], abs=1e-5)
    health = ray.get(actor.health.remote())
    assert (health["requests"], health["failed"], health["path"]) == (73, 0, str(folder))
    assert health["batches"] <= 16 and health["waiting"] == 0 and health["busy_s"] == 0.0
    assert health["cached_items"] == 2  # "like red hat" and "like blue"
    ray.kill(actor)


def test_scores_of_a_batch_hang_on_it_alone(folder: Path) -> None:
    """Equal to the bit: whatever the actor has cached or scores beside it, whichever actor it is, and after a wrong
    one. Without that, states of items from earlier batches would be used, which were padded otherwise."""
    names = prmu_actor.names("prmu_batch", 2)
    actors = [prmu_actor.start(name, str(folder)) for name in names]
    ray.get([actor.health.remote() for actor in actors])
    expected = Scorer(folder, max_padded_tokens=2048).score(ASKS)
    ray.get(actors[0].score_many.remote(ASKS[:5], 30.0))
    beside = actors[0].score_many.remote(ASKS[5:40], 30.0)
    for actor in (actors[0], actors[0], actors[1]):
        assert [reply.score for reply in ray.get(actor.score_together.remote(ASKS))] == expected
    ray.get(beside)
    pool = ScorerPool(names, 30.0)
    ray.kill(actors[0])
    assert [reply.score for reply in asyncio.run(pool.score_together(ASKS))] == expected
    wrong = [ASKS[0], replace(ASKS[1], response=3), ASKS[2]]  # type: ignore[arg-type]
    first, second, third = asyncio.run(pool.score_together(wrong))
    assert first.score and third.score and second.score is None and "request.response is 3" in second.reason
    ray.kill(actors[1])
    assert all("is dead" in reply.reason for reply in asyncio.run(pool.score_together(ASKS[:2])))


def test_a_bad_request_gets_the_reason_and_the_others_are_scored(folder: Path) -> None:
    actor = prmu_actor.start("prmu_bad", str(folder))
    bad: Any = replace(ASKS[0], response=None)
    first, refused, last = ray.get(actor.score_many.remote([ASKS[0], bad, ASKS[1]], 30.0))
    assert 0 <= first.score <= 1 and 0 <= last.score <= 1
    assert refused.score is None and "request.response is None" in refused.reason and not refused.again
    with pytest.raises(TagprError, match=r"request\.response is None"):
        ray.get(actor.score.remote(bad))
    ray.kill(actor)


def test_odd_inputs_are_scored_and_the_actor_lives(folder: Path) -> None:
    """Unknown user, no profile, 10,000 items, emoji, 100 kB of text, half a surrogate pair, nothing at all."""
    actor = prmu_actor.start("prmu_odd", str(folder))
    before = pid(actor)
    whole = ScoreRequest("u0", ("like red hat", "like blue"), "hat", "take red")
    long = "red " * 25_000
    asks = [
        replace(whole, user_id="nobody has this id"), replace(whole, profile_texts=()),
        replace(whole, profile_texts=("like red hat", "like blue") * 5_000),
        replace(whole, profile_texts=("like red hat", "like blue") * 8),  # as many as are read
        replace(whole, user_id="\U0001f9e2", profile_texts=("\U0001f44d\U0001f3fd" * 300,), response="\U0001f9e2"),
        replace(whole, profile_texts=(long,) * 16, question=long, response=long),
        replace(whole, response="\ud83d", question="\udc4d", user_id="\ud83d"), ScoreRequest("", (), "", ""),
    ]  # fmt: skip
    replies = ray.get(actor.score_many.remote(asks, 60.0))
    assert [reply.reason for reply in replies] == [""] * len(asks)
    assert all(0 <= reply.score <= 1 for reply in replies)
    assert replies[2].score == pytest.approx(replies[3].score, abs=1e-6)
    assert pid(actor) == before
    ray.kill(actor)


def test_a_score_that_is_not_finite_is_an_error_not_a_score(folder: Path, tmp_path: Path) -> None:
    """Weights are finite and their products overflow: known only when a response is scored."""
    model, encoder = PrmuModel.from_pretrained(folder)
    model.proj.weight.data.fill_(1e38)
    model.save_pretrained(tmp_path, encoder.tokenizer)
    actor = prmu_actor.start("prmu_overflow", str(tmp_path))
    with pytest.raises(FloatingPointError, match="for user 'u0'"):
        ray.get(actor.score.remote(ASKS[0]))
    (reply,) = ask(ScorerPool(["prmu_overflow"], 30.0), ASKS[:1])
    assert reply.score is None and "its weights are damaged or overflow" in reply.reason
    assert ray.get(actor.health.remote())["failed"] == 2
    ray.kill(actor)


def test_weights_that_are_not_finite_stop_the_stage_at_its_start(folder: Path, tmp_path: Path) -> None:
    poisoned = shutil.copytree(folder, tmp_path / "prmu")
    poison(poisoned)
    with pytest.raises(TagprError, match=r"did not start: .*head\.bias holds values that are not finite"):
        prmu_actor.start_all("prmu_nan", 1, path=str(poisoned))


def test_a_scorer_killed_in_the_middle_restarts_and_every_response_is_scored(folder: Path) -> None:
    (name, actor), *_ = prmu_actor.start_all("prmu_kill", 1, path=str(folder), max_wait_ms=2000.0).items()
    before = pid(actor)
    replies = ask(ScorerPool([name], 60.0), ASKS, 0.5, lambda: os.kill(before, signal.SIGKILL))
    assert [reply.score for reply in replies] == pytest.approx(Scorer(folder).score(ASKS), abs=1e-5)
    assert pid(actor) != before
    ray.kill(actor)


def test_a_scorer_that_restarts_into_nan_weights_gives_the_reason_at_once(folder: Path, tmp_path: Path) -> None:
    poisoned = shutil.copytree(folder, tmp_path / "prmu")
    (name, actor), *_ = prmu_actor.start_all("prmu_later", 1, path=str(poisoned), max_wait_ms=2000.0).items()
    poison(poisoned)
    started, before = time.monotonic(), pid(actor)
    replies = ask(ScorerPool([name], 120.0), ASKS[:5], 0.5, lambda: os.kill(before, signal.SIGKILL))
    assert time.monotonic() - started < 60
    assert {reply.score for reply in replies} == {None}
    (reason,) = {reply.reason for reply in replies}
    assert name in reason and "head.bias holds values that are not finite" in reason


def test_scorers_share_the_work_even_of_one_user(folder: Path) -> None:
    """64 responses for one user: the user's own scorer gets half, and eight more at most."""
    actors = prmu_actor.start_all("prmu_shared", 2, path=str(folder))
    asks = [replace(ASKS[0], response="take" + " red" * i) for i in range(64)]
    replies = ask(ScorerPool(list(actors), 60.0), asks)
    assert [reply.score for reply in replies] == pytest.approx(Scorer(folder).score(asks), abs=1e-5)
    counts = [ray.get(actor.health.remote())["requests"] for actor in actors.values()]
    assert sum(counts) == 64 and max(counts) <= 36
    few = ask(ScorerPool(list(actors), 60.0), asks[:8])  # all by the user's own, whose cache has the profile
    assert all(reply.score is not None for reply in few)
    after = [ray.get(actor.health.remote())["requests"] for actor in actors.values()]
    assert sorted(b - a for a, b in zip(counts, after, strict=True)) == [0, 8]
    for actor in actors.values():
        ray.kill(actor)


@pytest.mark.parametrize("dtype, apart", [("float32", 0.0), ("bfloat16", 1e-2)])
def test_a_scorer_computes_in_the_placement_s_format(folder: Path, dtype: str, apart: float) -> None:
    (actor,) = prmu_actor.start_all(f"prmu_{dtype}", 1, path=str(folder), dtype=dtype).values()
    scores = ray.get([actor.score.remote(request) for request in ASKS[:16]])
    differences = [abs(a - b) for a, b in zip(scores, Scorer(folder).score(ASKS[:16]), strict=True)]
    assert max(differences) <= max(apart, 1e-6) and (max(differences) > 1e-6) is (dtype == "bfloat16")
    ray.kill(actor)


def test_a_frozen_scorer_is_restarted_and_meanwhile_the_other_scores(folder: Path) -> None:
    actors = prmu_actor.start_all("prmu_two", 2, path=str(folder))
    stop, said = threading.Event(), list[str]()
    times = {"every_s": 0.5, "limit_s": 4.0, "stall_s": 60.0, "start_s": 60.0}
    arguments = {**times, "stopped": stop.wait, "report": said.append}
    frozen = pid(actors["prmu_two_0"])
    os.kill(frozen, signal.SIGSTOP)
    thread = threading.Thread(target=prmu_client.watch, args=(actors,), kwargs=arguments)
    thread.start()
    try:
        replies = ask(ScorerPool(list(actors), 60.0), ASKS)
        assert [reply.score for reply in replies] == pytest.approx(Scorer(folder).score(ASKS), abs=1e-5)
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join()
    assert said[0] == "PRMU's scorer prmu_two_0 did not answer within 4 s: restarted"
    after = ask(ScorerPool(list(actors)[:1], 60.0), ASKS[:3])
    assert all(reply.score is not None for reply in after) and pid(actors["prmu_two_0"]) != frozen
    for actor in actors.values():
        ray.kill(actor)


def test_no_answer_in_time_is_a_masked_response_with_the_reason(folder: Path) -> None:
    """One scorer, frozen, and nobody who restarts it: the reward row says so, and scores come again after it."""
    (name, actor), *_ = prmu_actor.start_all("prmu_frozen", 1, path=str(folder)).items()
    checker = start_checker("prmu_checker", schema_file=None, terms=short_form(), folder=".")
    info = {
        "task": "LaMP_2", "gold": "comedy", "user_id": "u0", "profile_texts": ["like red hat"], "question": "hat",
    }  # fmt: skip
    scorer = ResponseScorer("prmu_checker", [name], 1.5)
    before = pid(actor)
    os.kill(before, signal.SIGSTOP)
    try:
        output, times = asyncio.run(scorer.score(info, "take red"))
    finally:
        os.kill(before, signal.SIGCONT)
    assert output.prmu_status == "masked" and output.components["prmu"] == 0.0
    assert times.reason == f"no score after prmu_timeout_s=1.5; last: {name} did not answer within 1.5 s"
    assert 1.4 < times.done_at - times.sent_at < 6
    output, times = asyncio.run(ResponseScorer("prmu_checker", [name], 30.0).score(info, "take red"))
    assert output.prmu_status == "scored" and times.reason == "" and times.done_at >= times.sent_at
    ray.kill(actor)
    ray.kill(checker)


def test_a_full_queue_is_asked_again_until_the_time_is_up(folder: Path) -> None:
    actor = prmu_actor.start("prmu_full", str(folder), max_waiting=8, max_wait_ms=20.0)
    ray.get(actor.health.remote())
    replies = ask(ScorerPool(["prmu_full"], 60.0), ASKS)
    assert [reply.score for reply in replies] == pytest.approx(Scorer(folder).score(ASKS), abs=1e-5)
    assert ray.get(actor.health.remote())["refused"] >= len(ASKS) - 8
    ray.kill(actor)
    actor = prmu_actor.start("prmu_stuck", str(folder), max_waiting=8, max_wait_ms=60_000.0)
    ray.get(actor.health.remote())
    replies = ask(ScorerPool(["prmu_stuck"], 1.5), ASKS)
    assert {reply.score for reply in replies} == {None}
    full = [reply.reason for reply in replies if "QueueFull: 8 requests wait already" in reply.reason]
    late = [reply.reason for reply in replies if "the scorer needs more than 1.2 s (8 requests wait)" in reply.reason]
    assert (len(full), len(late)) == (len(ASKS) - 8, 8)
    ray.kill(actor)


def test_the_scorer_s_place_is_the_recipe_s() -> None:
    from tagpr_rl.config import PlacementBlock, PlatformBlock
    from tagpr_rl.config.placement import PrmuServing
    from tagpr_rl.stages.grpo import scorer_placement

    eight = PlatformBlock(device="cuda", nodes=2, devices_per_node=4)
    limits = {"dtype": None, "max_batch_tokens": 16_384, "cache_mb": 512.0, "restarts": 3}
    cpu = {"device": "cpu", **limits, "max_batch_tokens": 2048}
    assert scorer_placement(PlatformBlock(), PlacementBlock()) == {**cpu, "scorers": 1}
    assert scorer_placement(eight, PlacementBlock()) == {**cpu, "scorers": 2}  # one a node
    shared = {"device": "cuda", "num_gpus": 0.0, **limits}
    assert scorer_placement(eight, PlacementBlock(prmu="shared")) == {**shared, "scorers": 8}
    half = PlacementBlock(prmu="dedicated", prmu_devices=0.5)
    assert scorer_placement(eight, half) == {"device": "cuda", "num_gpus": 0.5, **limits, "scorers": 1}
    own = PlacementBlock(prmu="shared", prmu_serving=PrmuServing(scorers=3, dtype="bfloat16"))
    assert scorer_placement(eight, own) == {**shared, "scorers": 3, "dtype": "bfloat16"}
