"""A tiny random model asked for JSON of a schema: behind a real `vllm serve`, and in vLLM's offline engine.

A random model writes noise, so that JSON of the schema can come from structured output alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import ChatRequest, Generator, Reply
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.chains.labellers.label import read_labels
from tagpr_rl.config import EndpointBlock, recipe_from_dict
from tagpr_rl.tags.ebnf import ebnf
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.tags.streaming import split_response
from tagpr_rl.types import TagprError

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]
SCHEMA = default_schema()
STEPS = 3
START_S = 200.0


def labels_schema() -> dict[str, Any]:
    """JSON of `read_labels` for three steps."""

    def item(i: int) -> dict[str, Any]:
        properties = {"i": {"const": i}, "tag": {"enum": list(SCHEMA.names)}}
        return {"type": "object", "properties": properties, "required": ["i", "tag"], "additionalProperties": False}

    items = [item(i) for i in range(STEPS)]
    steps = {"type": "array", "prefixItems": items, "items": False, "minItems": STEPS, "maxItems": STEPS}
    return {"type": "object", "properties": {"steps": steps}, "required": ["steps"], "additionalProperties": False}


def labelling(n: int, **changes: Any) -> list[ChatRequest]:
    options: dict[str, Any] = {
        "temperature": 1.0,
        "max_tokens": 700,
        "json_schema": labels_schema(),
        "seed": 5,
    } | changes
    return [ChatRequest(({"role": "user", "content": f"word{i} thing{7 * i}"},), **options) for i in range(n)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model, whose tokens can spell any JSON."""
    from tagpr_rl.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny")
    text = " ".join(f"word{i} thing{7 * i}" for i in range(600)) + ' {"steps": [{"i": 0, "tag": '
    info = build_tiny(folder, corpus_texts=[text], phrases=SCHEMA.names, max_vocab=500)
    assert info.kind == "bpe"
    return folder


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[str]:
    """`vllm serve` on a free port of loopback; gives its base_url."""
    environment = os.environ | {
        "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    try:
        importlib.metadata.distribution("vllm")  # not `version`, which the platform's patch answers in this process
    except importlib.metadata.PackageNotFoundError:
        # The CPU build is installed as `vllm-cpu`, and the command line asks for the version of `vllm`
        # (vllm/entrypoints/cli/main.py:83).
        shim = folder / "shim" / f"vllm-{importlib.metadata.version('vllm-cpu')}.dist-info"
        shim.mkdir(parents=True)
        version = f"Metadata-Version: 2.1\nName: vllm\nVersion: {importlib.metadata.version('vllm-cpu')}+cpu\n"
        (shim / "METADATA").write_text(version, encoding="utf-8")
        environment["PYTHONPATH"] = os.pathsep.join([str(shim.parent), environment.get("PYTHONPATH", "")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "16", "--reasoning-parser", "tagpr"]
    command += ["--structured-outputs-config", '{"enable_in_reasoning": true}']
    log = folder / "serve.log"
    with log.open("w") as out:
        # Its own process group: the engine is a process of its own.
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            opener, until = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + START_S
            while True:
                try:
                    opener.open(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def check(generator: Generator, first: int = 0) -> list[Reply]:
    """Twelve labellings and one free text, asked twice: whole answers come from the cache. Returns what was paid."""
    requests = [*labelling(12), *labelling(1, json_schema=None, max_tokens=9, temperature=0.0)]
    replies = generator.generate(requests)
    whole = [reply for reply in replies[:12] if reply.status == "OK"]
    assert {reply.status.value for reply in replies[:12]} <= {"OK", "LENGTH"}
    assert len(whole) >= 4, "white space without end may fill a reply, not nearly all of them"
    assert all(read_labels(reply.text, STEPS, SCHEMA) is not None for reply in whole)
    assert len({reply.text for reply in whole}) > 1
    assert all(reply.prompt_tokens > 3 and reply.completion_tokens > 20 for reply in whole)
    free = replies[12]
    assert free.status == "LENGTH" and free.completion_tokens == 9 and read_labels(free.text, STEPS, SCHEMA) is None
    again = generator.generate(requests)
    assert [reply.cached for reply in again] == [reply.status == "OK" for reply in replies]
    assert not any(reply.cached for reply in replies)
    assert all(new.text == old.text for new, old in zip(again, replies, strict=True) if new.cached)
    return [*replies, *(reply for reply in again if not reply.cached)]


def test_a_real_server(tiny: Path, tmp_path: Path) -> None:
    with serving(tiny, tmp_path) as url, AnswerCache(tmp_path / "a") as cache:
        block = EndpointBlock(kind="openai", base_url=url, model="tiny", concurrency=8)
        replies = check(OpenAIGenerator(block, cache, account="p"))
        spent = cache.spent("p")
        assert spent.prompt_tokens == sum(reply.prompt_tokens for reply in replies)
        assert spent.completion_tokens == sum(reply.completion_tokens for reply in replies)
        assert spent.unsure_tokens == 0
        long = [ChatRequest(({"role": "user", "content": "word1 " * 2000},))]
        refused, fine = OpenAIGenerator(block, cache, account="p").generate([*long, *labelling(1, max_tokens=2)])
        assert refused.status == "REFUSED" and "HTTP 400" in refused.detail and fine.status == "LENGTH"
        other = EndpointBlock(kind="openai", base_url=url, model="big", concurrency=8)
        with pytest.raises(TagprError, match=r"404.*the endpoint has tiny"):
            OpenAIGenerator(other, cache, account="p").generate(labelling(1))
        check_reasoning(url)


def check_reasoning(url: str) -> None:
    """The parser `tagpr` behind the same server: thought and answer apart, whole and streaming."""
    from openai import OpenAI

    response = "<think>\n<examine_examples>dry titles</examine_examples>\n<conclude>so 4</conclude>\n</think>\n4 < 5"
    thought, answer = split_response(response)
    only = f"root ::= {json.dumps(response)}"  # a random model can write nothing else
    client = OpenAI(base_url=url, api_key="none")

    def ask(grammar: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": "The tags are <think></think>. word1"}]
        extra = {"structured_outputs": {"grammar": grammar}}
        return client.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **options)

    whole = ask(only).choices[0].message
    assert (whole.reasoning, whole.content) == (thought, answer)
    assert parse(f"<think>{whole.reasoning}</think>{whole.content}", SCHEMA) == parse(response, SCHEMA)
    pieces = [chunk.choices[0].delta for chunk in ask(only, stream=True) if chunk.choices]
    assert "".join(getattr(piece, "reasoning", None) or "" for piece in pieces) == thought
    assert "".join(piece.content or "" for piece in pieces) == answer
    assert len(pieces) > 5  # it came bit by bit
    plain = ask('root ::= "no thought"').choices[0].message
    assert (plain.reasoning, plain.content) == (None, "no thought")
    free = ask(ebnf(SCHEMA), max_tokens=60).choices[0].message
    assert re.match(rf"<({'|'.join(SCHEMA.names)})>\S", free.reasoning) and free.content is None


def test_the_offline_engine(tiny: Path, tmp_path: Path) -> None:
    """Two engines, on two devices: a teacher's answers, and an evaluation's beside those of one engine."""
    import ray

    from tagpr_rl.backend.rollout.generate import Engine
    from tagpr_rl.backend.rollout.offline import OfflineGenerator, fingerprint
    from tagpr_rl.backend.session.ray_session import ray_session

    def model_runner(generator: Any) -> tuple[str | None, bool]:  # in here, so that it travels by value
        """In an engine's process: the variable, and whether vLLM took its second model runner."""
        return os.environ.get("VLLM_USE_V2_MODEL_RUNNER"), generator.llm.llm_engine.vllm_config.use_v2_model_runner

    block = {"kind": "vllm", "model": str(tiny), "concurrency": 8, "max_model_len": 1024, "budget": {"tokens": 20_000}}
    chains = {"kind": "chains", "teacher": block}
    stages = {"data": {"kind": "data"}, "model": {"kind": "model"}, "chains": chains}
    raw = {
        "name": "r",
        "out": str(tmp_path),
        "stages": stages,
        "platform": {"devices_per_node": 2, "vllm_model_runner": "v1"},
    }
    recipe = recipe_from_dict(raw, source="r")
    offline = EndpointBlock.model_validate(block)
    with ray_session(recipe), AnswerCache(tmp_path / "a") as cache:
        greedy = [[1 + i % 40, 2, 3 + i % 7] for i in range(21)]  # an odd number, and prompts that stand there twice
        with Engine(recipe, tiny, count=1) as one:
            expected = one.responses(greedy, temperature=0.0)
        with Engine(recipe, tiny) as two:
            asked = [actor.__ray_call__.remote(model_runner) for actor in two._engines._actors]
            assert ray.get(asked) == [("0", False)] * 2
            assert two.responses(greedy, temperature=0.0) == expected and len(set(expected)) > 10
            assert two.responses([], temperature=0.0) == []
            assert two.responses(greedy[:1], temperature=0.0) == expected[:1]
            # Samples of one prompt: each has a seed by its number, whichever engine writes it.
            assert len(set(two([greedy[0]] * 8, temperature=1.0))) > 4
        generator = OfflineGenerator(recipe, offline, cache, account="p")
        try:
            replies = check(generator)
            spent = cache.spent("p").tokens
            assert spent == sum(reply.prompt_tokens + reply.completion_tokens for reply in replies)
            long = ChatRequest(({"role": "user", "content": "word1 " * 2000},))
            bad = labelling(1, json_schema={"type": "no such type"})[0]
            refused, rejected, fine = generator.generate([long, bad, *labelling(1, max_tokens=2)])
            assert refused.status == "REFUSED" and "limit is 1024" in refused.detail
            assert rejected.status == "REFUSED" and rejected.detail
            assert fine.status == "LENGTH" and fine.completion_tokens == 2
            spent = cache.spent("p").tokens
            budget = offline.budget.model_copy(update={"tokens": spent + 100})
            generator.block = offline.model_copy(update={"budget": budget})
            counts = {reply.status.value for reply in generator.generate(labelling(30, max_tokens=4, seed=6))}
            assert counts == {"LENGTH", "BUDGET"} and cache.spent("p").tokens <= spent + 100
        finally:
            generator.close()
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert fingerprint(other) == fingerprint(tiny)
    weights = bytearray((tiny / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert fingerprint(other) != fingerprint(tiny), "other weights are another model"


def test_models_that_differ_take_turns_on_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model's engines take all devices: those of the other end before they start. Equal blocks share engines."""
    from tagpr_rl.backend.rollout import offline
    from tagpr_rl.config import ChainsStage
    from tagpr_rl.stages.chains import language_models

    events: list[str] = []

    class Fake:
        def __init__(self, recipe: Any, block: EndpointBlock, *_: Any, before_start: Any, **__: Any) -> None:
            self.name, self.before_start, self.started = str(block.model), before_start, False

        def generate(self, requests: Any) -> list[Reply]:
            if not self.started:
                self.before_start()
                self.started = True
                events.append(f"{self.name} starts")
            return []

        def close(self) -> None:
            if self.started:
                events.append(f"{self.name} ends")
            self.started = False

    monkeypatch.setattr(offline, "OfflineGenerator", Fake)
    stages = {"data": {"kind": "data"}, "model": {"kind": "model"}, "chains": {"kind": "chains"}}
    recipe = recipe_from_dict({"name": "r", "out": str(tmp_path), "stages": stages}, source="r")
    one, other = (EndpointBlock(kind="vllm", model=name) for name in ("teacher", "labeller"))
    with language_models(recipe, ChainsStage(), lambda: None) as models:
        for block, role in (
            (one, "teacher"),
            (other, "labeller"),
            (other, "labeller"),
            (one, "teacher"),
            (one, "labeller"),
        ):
            models.generator_for(block, role).generate([])
    turns = ["teacher starts", "teacher ends", "labeller starts", "labeller ends", "teacher starts", "teacher ends"]
    assert events == turns
