"""A vLLM scheduler that hands over finished responses only, and begins requests that belong together at once.

Rollouts are read by nobody token by token.

vLLM's engine sends every new token of every response to the server, with three arrays of log-probabilities each, also
if the request asks for its final output alone (v1/core/sched/scheduler.py:1922 in 0.27.1, :1782 in 0.24.0). vLLM takes
its scheduler by name (`scheduler_cls`), so nothing is patched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import LogprobsLists

from tagpr_rl.backend.rollout.places import turn_of
from tagpr_rl.backend.scoring.coalesce import Turn


@dataclass(slots=True)
class HeldTokens:
    """What a response has got since its last output: token ids, and three columns of log-probabilities if wanted.

    The columns are flat lists: a list a token would make Python's garbage collector visit each of them again and again.
    """

    started: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: tuple[list[Any], list[Any], list[Any]] = field(default_factory=lambda: ([], [], []))

    def add(self, output: Any) -> None:
        """Keep an output's tokens. Copied, because the engine may use its arrays again."""
        self.tokens.extend(output.new_token_ids)
        if output.new_logprobs is not None:
            for column, values in zip(self.logprobs, output.new_logprobs[:3], strict=True):
                column.extend(values.ravel().tolist())

    def move_to(self, output: Any) -> None:
        """Put everything held in front of an output's own tokens, and hold nothing any more."""
        if not self.tokens:
            return
        self.add(output)
        output.new_token_ids = self.tokens
        ids, logprobs, ranks = self.logprobs
        if ids:
            output.new_logprobs = LogprobsLists(
                logprob_token_ids=np.asarray(ids, np.int32).reshape(len(ranks), -1),
                logprobs=np.asarray(logprobs, np.float32).reshape(len(ranks), -1),
                sampled_token_ranks=np.asarray(ranks, np.int32),
            )
        self.tokens, self.logprobs = [], ([], [], [])


class FinishedOutputs:
    """For a vLLM scheduler: holds a response's tokens back until it ends, and then hands them over in one output.

    A request is held if it asks for its final output alone. Not held is a request with stop strings, which the server
    looks for in the tokens as they come. The first output goes through, because it tells of the prompt; so does every
    output that tells more than tokens and log-probabilities, with what was held before it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, HeldTokens] = {}

    def add_request(self, request: Any) -> None:
        """Accept a request of the server (SchedulerInterface.add_request)."""
        sampling = request.sampling_params
        if sampling is not None and sampling.output_kind == RequestOutputKind.FINAL_ONLY and not sampling.stop:
            self._held[request.request_id] = HeldTokens()
        super().add_request(request)  # type: ignore[misc]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """vLLM's outputs by client, without those that can wait (SchedulerInterface.update_from_output)."""
        for request in scheduler_output.finished_req_ids:  # those that were aborted, too
            self._held.pop(request, None)
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        for client, sent in list(outputs.items()):
            sent.outputs = [output for output in sent.outputs if not self._waits(output)]
            if not sent.outputs and not sent.finished_requests and sent.scheduler_stats is None:
                del outputs[client]
        return outputs

    def _waits(self, output: Any) -> bool:
        held = self._held.get(output.request_id)
        if held is None:
            return False
        if held.started and not _tells_more(output):
            held.add(output)
            return True
        held.started = True
        held.move_to(output)
        if output.finished:
            del self._held[output.request_id]
        return False


def _tells_more(output: Any) -> bool:
    """Whether an output is the last, or carries more than tokens and their log-probabilities."""
    more = (
        output.finish_reason, output.new_prompt_logprobs_tensors, output.pooling_output, output.kv_transfer_params,
        output.prefill_stats, output.routed_experts,
    )  # fmt: skip
    return any(value is not None for value in more) or bool(output.events)


class GatheredRequests:
    """For a vLLM scheduler: requests with a turn wait until all of their batch are there, and begin in their order.

    vLLM begins with the first request that arrives, so which requests share a forward pass would be a matter of
    milliseconds; its matrix products round by the number of rows. A request without a turn does not wait.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathered: dict[str, list[tuple[Turn, Any]]] = {}

    def add_request(self, request: Any) -> None:
        """Accept a request of the server (SchedulerInterface.add_request)."""
        turn = turn_of(request.sampling_params.extra_args) if request.sampling_params is not None else None
        if turn is None:
            super().add_request(request)  # type: ignore[misc]
            return
        others = self._gathered.setdefault(turn.batch, [])
        others.append((turn, request))
        if len(others) < turn.count:
            return
        for _, own in sorted(self._gathered.pop(turn.batch), key=lambda pair: pair[0].number):
            super().add_request(own)  # type: ignore[misc]


class FinishedScheduler(GatheredRequests, FinishedOutputs, Scheduler):
    """vLLM's scheduler with held outputs and gathered requests."""


class FinishedAsyncScheduler(GatheredRequests, FinishedOutputs, AsyncScheduler):
    """The same for engines that schedule a step before the last one has ended."""


def scheduler(vllm_config: Any, **arguments: Any) -> Scheduler:
    """The scheduler of an engine, of the kind that vLLM would take (SchedulerConfig.get_scheduler_cls)."""
    kind = FinishedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else FinishedScheduler
    return kind(vllm_config=vllm_config, **arguments)
