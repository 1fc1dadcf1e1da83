"""PRMU over HTTP: batches of (user, question, response) in, scores in [0, 1] out. FastAPI, which comes with vLLM.

Requests of all clients join in the batches of `prmu.serving.batcher`, as those of a GRPO stage do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tagpr_rl.prmu.serving.batcher import Batcher, Outcome, QueueFull
from tagpr_rl.prmu.serving.requests import UNKNOWN_USER, ScoreRequest
from tagpr_rl.serve.access import Access
from tagpr_rl.serve.guard import Guard
from tagpr_rl.types import TagprError

MOST_BATCH = 256
"""Responses in one call."""
MOST_ITEMS = 2_000
"""Items of a history. PRMU reads those nearest to the question."""
MOST_CHARACTERS = 200_000
"""Of one text. PRMU reads less of it; the rest only costs time."""
MOST_BYTES = 8 << 20
"""Of a body."""
MOST_WAITING = 4_096
"""Responses in the queue, of all clients."""
OPEN_PATHS = ("/health", "/docs", "/openapi.json")
"""What needs no token: whether the server lives, and how it is asked."""

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

Text = Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]


class Closed(BaseModel):
    """A body whose keys are all known, and whose values are of the type that they should be."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Item(Closed):
    """One response to score for one user."""

    question: Text = Field(description="The question without the history, as text.")
    response: Text = Field(description="The whole response, thought and answer, as text. May be empty.")
    profile_texts: list[Text] = Field(
        default=[],
        max_length=MOST_ITEMS,
        description=f"The user's history: at most {MOST_ITEMS} texts, best first. Empty: the generic user.",
    )
    user_id: Text = Field(
        default=UNKNOWN_USER,
        description="The user's id as text, if PRMU was trained on this user; any other id adds nothing.",
    )

    def request(self) -> ScoreRequest:
        """As PRMU takes it."""
        return ScoreRequest(self.user_id, tuple(self.profile_texts), self.question, self.response)


class Batch(Closed):
    """Responses to score."""

    requests: list[Item] = Field(
        min_length=1, max_length=MOST_BATCH, description=f"A list of 1 to {MOST_BATCH} objects, one for each response."
    )


class Score(BaseModel):
    """The score of one response, or why it has none."""

    score: float | None = Field(description="In [0, 1], normalised as in training; null: not scored.")
    reason: str = Field(default="", description="Why there is no score.")


class Scores(BaseModel):
    """The scores, in the order of the requests."""

    scores: list[Score]
    model: str = Field(description="Run and stage of the reward model.")


class Model(Protocol):
    """What the service needs of `prmu.serving.score.Scorer`."""

    def score_each(self, requests: Sequence[ScoreRequest]) -> list[Outcome]:
        """A score in [0, 1] for each request, or the error that it caused."""

    def length(self, request: ScoreRequest) -> int:
        """Tokens of a request."""


def make_app(model: Model, name: str, access: Access, *, max_batch_tokens: int = 32_768) -> Any:
    """The service as an ASGI application. TagprError if FastAPI is not installed. `name`: what `model` is called."""
    try:
        from fastapi import FastAPI, HTTPException, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import HTMLResponse, JSONResponse
    except ModuleNotFoundError as error:
        raise TagprError(f"the package '{error.name}' is not installed; `make install` installs everything") from None
    app = FastAPI(title="PRMU", version="1", docs_url=None, redoc_url=None, description=__doc__ or "")
    batcher: Batcher[ScoreRequest] = Batcher(
        model.score_each, model.length, max_size=max_batch_tokens, max_waiting=MOST_WAITING
    )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server lives, and how many responses wait."""
        return {"model": name, "waiting": batcher.waiting}

    @app.post("/v1/score")
    async def score(batch: Batch) -> Scores:
        """Scores of a batch. A response that cannot be scored has a reason and stops no other."""
        try:
            return Scores(scores=await score_all(batcher, [item.request() for item in batch.requests]), model=name)
        except QueueFull as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The page of this interface. It loads nothing."""
        return HTMLResponse(docs_page(app.openapi()), headers={"Content-Security-Policy": PAGE_POLICY})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"errors": [mistake(one) for one in error.errors()]}, 422)

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"errors": [{"field": "", "problem": error.detail}]}, error.status_code, error.headers)

    return Guard(app, access, MOST_BYTES, OPEN_PATHS)


async def score_all(batcher: Batcher[ScoreRequest], requests: Sequence[ScoreRequest]) -> list[Score]:
    """The scores of one call. QueueFull if one of its requests found no room: the client asks again for all."""
    import asyncio

    outcomes = await asyncio.gather(*map(batcher.submit, requests), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, QueueFull):
            raise outcome
    return [one_score(outcome) for outcome in outcomes]


def one_score(outcome: float | BaseException) -> Score:
    """A score, or why there is none. An error that is neither of PRMU's two is a mistake of this project."""
    if isinstance(outcome, TagprError | FloatingPointError):
        return Score(score=None, reason=str(outcome))
    if isinstance(outcome, BaseException):
        raise outcome
    assert math.isfinite(outcome)
    return Score(score=outcome)


def mistake(error: Mapping[str, Any]) -> dict[str, str]:
    """A validation error as field, problem and remedy: `requests[0].response`."""
    keys = [key for key in error["loc"] if key != "body"]
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    if error["type"] == "json_invalid":
        return {
            "field": "",
            "problem": f"the body is not JSON: {error['ctx']['error']}",
            "remedy": "send a JSON object",
        }
    names = [key for key in keys if isinstance(key, str)]
    owner: type[BaseModel] = Item if len(names) > 1 else Batch
    known = owner.model_fields.get(names[-1]) if names else None
    if error["type"] == "extra_forbidden":
        return {"field": field, "problem": "no such key", "remedy": f"the keys are {', '.join(owner.model_fields)}"}
    remedy = known.description if known is not None and known.description else 'send {"requests": [...]}'
    return {"field": field, "problem": str(error["msg"]), "remedy": remedy}


def docs_page(schema: Mapping[str, Any]) -> str:
    """The OpenAPI description as a page that loads nothing (Swagger's loads its script from elsewhere)."""
    from tagpr_rl.report.page.embed import environment

    return environment().get_template("openapi.html.j2").render(schema=schema, schemas=schema["components"]["schemas"])
