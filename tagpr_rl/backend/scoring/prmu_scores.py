"""Raw PRMU scores for an evaluation, from a Ray actor on the run's device budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from tagpr_rl.prmu.serving.requests import ScoreRequest

CHUNK = 2048
"""Requests per call."""


@ray.remote(num_cpus=1, num_gpus=1)
class ScoreWorker:
    """One PRMU."""

    def __init__(self, path: str, device: str, threads: int) -> None:
        import torch

        from tagpr_rl.prmu.serving.score import Scorer

        torch.set_num_threads(threads)
        self.scorer = Scorer(Path(path), device)

    def raw(self, requests: list[ScoreRequest]) -> list[float]:
        """Raw scores, in order."""
        return self.scorer.raw(requests)


class RemoteScores:
    """A prmu.evaluate.RawScore on a Ray actor; a context manager that frees the device."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self.actor = ScoreWorker.remote(str(path), device, threads)  # type: ignore[attr-defined]

    def __enter__(self) -> RemoteScores:
        return self

    def __exit__(self, *_: object) -> None:
        ray.kill(self.actor, no_restart=True)

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Raw scores, in order. Equal requests are scored once."""
        distinct = list(dict.fromkeys(requests))
        raw: list[float] = []
        for first in range(0, len(distinct), CHUNK):
            raw += ray.get(self.actor.raw.remote(distinct[first : first + CHUNK]))
        score = dict(zip(distinct, raw, strict=True))
        return [score[request] for request in requests]
