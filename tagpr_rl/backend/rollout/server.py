"""verl's vLLM server and replica with the run's settings applied (verl 0.9.1 vllm_async_server.py).

A file of its own, because importing verl's server loads vLLM's API server, which no other process needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from verl.workers.rollout.replica import RolloutMode
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm.sampling_params import RequestOutputKind

from tagpr_rl.backend.session.worker_settings import from_environment


class TagprHttpServer(vLLMHttpServer):
    """verl's server; it asks the engine for each finished output once, without detokenising every token.

    Not on separate GPUs: their engines are interrupted for new weights, and verl waits for a first output of every
    request before it does so (vllm_async_server.py:970).
    """

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **kwargs: Any
    ) -> Any:
        """Generate token ids for one prompt (see vLLMHttpServer.generate)."""
        if from_environment().device == "cpu" or self.rollout_mode == RolloutMode.HYBRID:
            sampling_params = {**sampling_params, "output_kind": RequestOutputKind.FINAL_ONLY, "detokenize": False}
        return await super().generate(prompt_ids, sampling_params, request_id, **kwargs)

    async def generate_group(
        self, prompt_ids: list[int], samplings: Sequence[dict[str, Any]], request_ids: Sequence[str], **kwargs: Any
    ) -> list[Any]:
        """A response to the prompt for each request, or the exception that it ended with; when all have ended."""
        return await asyncio.gather(
            *(
                self.generate(prompt_ids, dict(sampling), request_id, **kwargs)
                for sampling, request_id in zip(samplings, request_ids, strict=True)
            ),
            return_exceptions=True,
        )

    async def weights_proof(self) -> list[dict[str, Any]]:
        """What each worker says of the last hand-over of weights (vllm_worker)."""
        proofs: list[dict[str, Any]] = await self.engine.collective_rpc("weights_proof")
        return proofs


class TagprReplica(vLLMReplica):
    """A replica that launches `TagprHttpServer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(TagprHttpServer)
