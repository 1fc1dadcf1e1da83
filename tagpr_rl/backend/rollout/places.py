"""Which responses are asked for together, in which order, and each one's seed: what makes a step's rollout repeat.

A vLLM engine rounds by the batch that a token is computed in, so equal seeds alone do not give equal responses: the
engine must also get the same requests in the same order before it begins (`finished.GatheredRequests`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tagpr_rl.backend.scoring.coalesce import Turn

PLACE = "tagpr_place"
"""Key of a request's `extra_args` with its `Place`, as the agent loop gives it."""
TURN = "tagpr_turn"
"""Key of a request's `extra_args` with its `Turn`, as a server gets it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response stands among those that the trainer asks for together."""

    batch: str
    """Name of all of them, unique in a stage: `train/12/0` is the first batch of step 12."""
    prompt: int
    prompts: int
    """The prompt's number, and of how many."""
    sample: int
    samples: int
    """The response's number in its group, and of how many."""

    def server(self, servers: int) -> int:
        """Which of the servers gets the request: prompts go round, a group stays together."""
        return self.prompt % servers

    def turn(self, servers: int) -> Turn:
        """The request's turn on its server."""
        prompts = len(range(self.server(servers), self.prompts, servers))
        return Turn(self.batch, (self.prompt // servers) * self.samples + self.sample, prompts * self.samples)


def placed(sampling: Mapping[str, Any], place: Place, seed: int | None) -> dict[str, Any]:
    """verl's sampling settings with the place of one response, and its seed if it is sampled."""
    return {**sampling, "seed": seed, "extra_args": {PLACE: asdict(place)}}


def place_of(sampling: Mapping[str, Any]) -> Place | None:
    """The place in verl's sampling settings; None if the response has none."""
    fields = (sampling.get("extra_args") or {}).get(PLACE)
    return None if fields is None else Place(**fields)


def on_server(sampling: Mapping[str, Any], servers: int) -> dict[str, Any]:
    """The settings for one of so many servers: with the turn that a place means there."""
    place = place_of(sampling)
    if place is None:
        return dict(sampling)
    return {**sampling, "extra_args": {**sampling["extra_args"], TURN: asdict(place.turn(servers))}}


def alone(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the turn: the response is computed at once, with whatever the engine has in hand."""
    extra = {key: value for key, value in (sampling.get("extra_args") or {}).items() if key != TURN}
    return {**sampling, "extra_args": extra or None}


def turn_of(extra_args: Mapping[str, Any] | None) -> Turn | None:
    """The turn in a request's `extra_args`; None if it has none, and need not wait for others."""
    fields = (extra_args or {}).get(TURN)
    return None if fields is None else Turn(**fields)


def prompt_name(step: int, number: int) -> str:
    """verl's uid of the `number`th prompt that a step asks for. Names sort like their numbers and hold no `_`, with
    which verl appends sample and attempt."""
    return f"{step:06d}-{number:06d}"


def key_order(key: str) -> tuple[str, int, int]:
    """Sorts verl's keys `<uid>_<sample>_<attempt>` by prompt, sample and attempt."""
    name, sample, attempt = key.rsplit("_", 2)
    return name, int(sample), int(attempt)


def request_seed(stage_seed: int, parts: Sequence[object]) -> int:
    """The seed of one request, of 32 bits, from the stage's seed and what names the request within the stage.

    SHA-256, so it is the same in every process and on every machine. torch's generator on the CPU takes 32 bits of a
    seed; of 256 responses, two have the same seed once in 130,000 steps, and differ all the same if their prompts do.
    """
    text = "\0".join(map(str, (stage_seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
