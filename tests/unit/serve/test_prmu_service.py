"""PRMU over HTTP: the scores of a direct Scorer, and what is refused with which words."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.serve.access import VARIABLE, access
from tagpr_rl.serve.prmu import MOST_BATCH, MOST_BYTES, make_app
from tagpr_rl.types import TagprError

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
TOKEN = "0123456789abcdef"
ITEM = {"user_id": "u1", "profile_texts": ["i like a red hat"], "question": "which hat", "response": "take the red one"}


class Lengths:
    """In place of PRMU: the score is a hundredth of the response's length; "nan" has none, "bug" is a mistake."""

    def score_each(self, requests: Sequence[ScoreRequest]) -> list[float | Exception]:
        return [self._one(request) for request in requests]

    def _one(self, request: ScoreRequest) -> float | Exception:
        if request.response == "bug":
            return RuntimeError("secret detail")
        return FloatingPointError("PRMU gave nan") if request.response == "nan" else len(request.response) / 100

    def length(self, request: ScoreRequest) -> int:
        return 1 + len(request.response)


@contextmanager
def serving(model: Any, host: str = "127.0.0.1") -> Iterator[int]:
    """The service on a free port of loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(model, "run:prmu", access(host)), log_level="critical", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.delenv(VARIABLE, raising=False)
    with serving(Lengths()) as port:
        yield port


def ask(port: int, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """(status, JSON or text). A body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if body is None or isinstance(body, str | bytes | Iterator) else json.dumps(body)
    connection.request(
        "GET" if body is None else "POST", path, data, {"Content-Type": "application/json"} | (headers or {})
    )
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text) if reply.headers["Content-Type"].startswith("application/json") else text


def test_a_batch_is_scored_in_its_order(port: int) -> None:
    texts = ["a" * n for n in (5, 1, 0, 99)]
    status, reply = ask(port, "/v1/score", {"requests": [ITEM | {"response": text} for text in [*texts, "nan"]]})
    assert status == 200 and reply["model"] == "run:prmu"
    assert [score["score"] for score in reply["scores"]] == [0.05, 0.01, 0.0, 0.99, None]
    assert reply["scores"][-1]["reason"] == "PRMU gave nan" and reply["scores"][0]["reason"] == ""
    assert (
        ask(port, "/v1/score", {"requests": [{"question": "q", "response": "four"}]})[1]["scores"][0]["score"] == 0.04
    )
    assert ask(port, "/health") == (200, {"model": "run:prmu", "waiting": 0})


def test_a_mistake_of_the_project_is_no_score(port: int) -> None:
    status, reply = ask(port, "/v1/score", {"requests": [ITEM | {"response": "bug"}]})
    assert status == 500 and "secret" not in str(reply)


@pytest.mark.parametrize(
    "body, field, words",
    [
        ({"requests": [ITEM, ITEM | {"response": 7}]}, "requests[1].response", "The whole response"),
        ({"requests": [{"question": "q"}]}, "requests[0].response", "The whole response"),
        ({"requests": [ITEM | {"profile_texts": ["a", None]}]}, "requests[0].profile_texts[1]", "at most 2000 texts"),
        ({"requests": [ITEM | {"profile_texts": "a"}]}, "requests[0].profile_texts", "at most 2000 texts"),
        ({"requests": [ITEM | {"query": "q"}]}, "requests[0].query", "the keys are question, response"),
        ({"requests": []}, "requests", f"1 to {MOST_BATCH} objects"),
        ({"requests": [ITEM] * (MOST_BATCH + 1)}, "requests", f"1 to {MOST_BATCH} objects"),
        ({"requests": [ITEM | {"question": "x" * 200_001}]}, "requests[0].question", "The question without"),
        ({"request": []}, "requests", "A list of 1"),
        ({"requests": [ITEM | {"question": "\ud800"}]}, "requests[0].question", "as text"),  # half a surrogate pair
        ([ITEM], "", "requests"),
        ("{", "", "send a JSON object"),
    ],
)  # fmt: skip
def test_bad_input_names_the_field_and_the_remedy(port: int, body: Any, field: str, words: str) -> None:
    status, reply = ask(port, "/v1/score", body)
    assert status == 422
    assert any(error["field"] == field and words in error["remedy"] and error["problem"] for error in reply["errors"])


def test_a_large_body_is_refused_whether_it_says_its_size_or_not(port: int) -> None:
    assert ask(port, "/v1/score", b"x", {"Content-Length": str(MOST_BYTES + 1)})[0] == 413
    status, reply = ask(port, "/v1/score", (b"x" * (1 << 20) for _ in range(9)))
    assert status == 413 and "8,388,608 bytes" in reply["errors"][0]["problem"]


def test_strangers_stay_outside(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(port, "/v1/score", {"requests": [ITEM]}, {"Host": "evil.example"})[0] == 421
    monkeypatch.setenv(VARIABLE, TOKEN)
    with serving(Lengths(), "0.0.0.0") as other:
        assert ask(other, "/v1/score", {"requests": [ITEM]})[0] == 401
        assert ask(other, "/v1/score", {"requests": [ITEM]}, {"Authorization": f"Bearer {TOKEN}x"})[0] == 401
        assert ask(other, "/v1/score", {"requests": [ITEM]}, {"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert ask(other, "/health")[0] == 200
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(TagprError, match="openssl rand"):
        access("0.0.0.0")


def test_the_page_describes_the_interface_and_loads_nothing(port: int) -> None:
    status, page = ask(port, "/docs")
    assert (
        status == 200 and "POST /v1/score" in page and "profile_texts" in page and "http" not in page.split("curl")[0]
    )
    status, schema = ask(port, "/openapi.json")
    assert set(schema["paths"]) == {"/health", "/v1/score"}
    assert schema["components"]["schemas"]["Item"]["required"] == ["question", "response"]


@pytest.mark.torch
def test_scores_are_those_of_a_direct_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several clients at once, whose requests join in batches: 1e-6 of the scores one by one."""
    import torch
    from prmu_toy import toy_backbone, toy_pairs

    import tagpr_rl
    from tagpr_rl.prmu.model import PrmuModelConfig, new_model
    from tagpr_rl.prmu.users.vectors import UserTable

    monkeypatch.delenv(VARIABLE, raising=False)
    model, encoder = new_model(toy_backbone(tmp_path / "backbone"), PrmuModelConfig(), UserTable(["u0", "u1"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    folder = tmp_path / "prmu"
    model.save_pretrained(folder, encoder.tokenizer)
    pairs = toy_pairs(users=4, per_user=2)
    items = [
        {
            "user_id": pair.user_id,
            "profile_texts": list(pair.profile_texts),
            "question": pair.question,
            "response": text,
        }
        for pair in pairs
        for text in (pair.chosen, pair.rejected, "")
    ]
    direct = tagpr_rl.Scorer(folder)
    expected = [
        direct.score([ScoreRequest(i["user_id"], tuple(i["profile_texts"]), i["question"], i["response"])])[0]  # type: ignore[arg-type]
        for i in items
    ]
    replies: dict[int, Any] = {}
    with serving(tagpr_rl.Scorer(folder)) as port:
        clients = [
            threading.Thread(
                target=lambda k: replies.update({k: ask(port, "/v1/score", {"requests": items[k::2]})}), args=(k,)
            )
            for k in range(2)
        ]
        [client.start() for client in clients]
        [client.join() for client in clients]
    for k in range(2):
        scores = [score["score"] for score in replies[k][1]["scores"]]
        assert scores == pytest.approx(expected[k::2], abs=1e-6)
    assert max(expected) - min(expected) > 1e-3  # else equality would say nothing
