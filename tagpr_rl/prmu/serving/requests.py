"""Requests to PRMU and its replies. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tagpr_rl.types import PairRow, TagprError

UNKNOWN_USER = ""
"""A user id that no table holds: PRMU then knows the user by the profile alone."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One response to score for one user."""

    user_id: str
    """Any id. An id that PRMU was not trained on has no identity term."""
    profile_texts: tuple[str, ...]
    """The user's items as text, best first. May be empty: PRMU then uses the generic user e_0."""
    question: str
    """The question without the profile."""
    response: str
    """The whole response, thought and answer. May be empty."""

    def generic(self) -> ScoreRequest:
        """The same response for the generic user e_0."""
        return ScoreRequest(UNKNOWN_USER, (), self.question, self.response)


def request_for(pair: PairRow, response: str) -> ScoreRequest:
    """The request that scores `response` for the pair's user."""
    return ScoreRequest(pair.user_id, pair.profile_texts, pair.question, response)


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """The result of one request: either a score, or the reason why there is none."""

    score: float | None
    """In [0, 1]; None = not scored."""
    reason: str = ""
    """Why there is no score."""
    again: bool = False
    """True if the same request may be scored later or by another scorer (for example after a full queue)."""

    def __post_init__(self) -> None:
        if (self.score is None) != bool(self.reason):
            raise ValueError(f"score {self.score!r} with reason {self.reason!r}: a reason if and only if no score")


def check_request(request: ScoreRequest) -> ScoreRequest:
    """Return `request`, or raise TagprError naming the field whose type is wrong."""
    if not isinstance(request, ScoreRequest):
        raise TagprError(f"PRMU: got {type(request).__name__}; give a ScoreRequest per response")
    for name in ("user_id", "question", "response"):
        value = getattr(request, name)
        if not isinstance(value, str):
            raise TagprError(f"PRMU: request.{name} is {value!r}; give a string")
    texts = request.profile_texts
    if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
        raise TagprError(f"PRMU: request.profile_texts of user {request.user_id!r} is not a tuple of strings")
    return request
