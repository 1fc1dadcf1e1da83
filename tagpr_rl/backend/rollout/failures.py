"""Responses that no engine could generate: the error, and how the trainer hears of it.

A failed response has no row anywhere. Its agent loop notes it in the tags of its prompt in TransferQueue, where the
replay buffer finds it when it takes the prompt's other responses into a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

ERROR = "error"
"""Tag of a prompt: an error of a response's agent loop that is no failed generation. It stops the stage."""
_FAILED = "failed_"
_TEXT = 4000
"""Characters of an error that travel in a tag."""


class RolloutError(Exception):
    """The engine gave no whole response in all attempts."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A response that is left out of its step."""

    task: str
    record_id: str
    sample: int
    """Its number in its group."""
    reason: str

    def tag(self) -> dict[str, Any]:
        """The tag that notes it with its prompt; one key a response, as TransferQueue merges tags."""
        return {f"{_FAILED}{self.sample}": asdict(self)}


def error_tag(error: BaseException) -> dict[str, str]:
    """The tag that stops the stage. The text stays whole: the supervisor reads from Ray's which process died."""
    return {ERROR: f"{type(error).__name__}: {error}"[:_TEXT]}


def failures_of(tags: Iterable[Mapping[str, Any]]) -> list[Failure]:
    """The failures in the prompts' tags, ordered by task, record and sample."""
    noted = [Failure(**value) for tag in tags for key, value in tag.items() if key.startswith(_FAILED)]
    return sorted(noted, key=lambda failure: (failure.task, failure.record_id, failure.sample))


def most_common(reasons: Iterable[str], most: int = 3) -> str:
    """`2 x no response within 60 s; 1 x it is empty`: the `most` most common reasons."""
    return "; ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(most))
