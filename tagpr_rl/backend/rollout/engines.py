"""vLLM engines in Ray actors, one model on all of them: requests are dealt out, answers come back in their order.

Each engine is an actor of its own, in a bundle of one placement group: all of them start, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tagpr_rl.backend.session.room import reserved
from tagpr_rl.backend.session.supervisor import result

Item = TypeVar("Item")


def dealt(items: Sequence[Item], hands: int) -> list[list[Item]]:
    """The items in `hands` lists as cards are dealt: neighbours, which are often of one task and length, are apart."""
    return [list(items[hand::hands]) for hand in range(hands)]


def gathered(hands: Sequence[Sequence[Item]]) -> list[Item]:
    """The items of `dealt`, in their order."""
    total = sum(map(len, hands))
    return [hands[at % len(hands)][at // len(hands)] for at in range(total)]


@ray.remote(num_cpus=1, num_gpus=1)
class Generator:
    """One vLLM engine; weights can be exchanged without starting another."""

    def __init__(self, folder: str, engine: dict[str, Any], device: str) -> None:
        from tagpr_rl.backend import platform_cpu

        if device == "cpu":
            import os

            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ["TORCH_COMPILE_DISABLE"] = "1"
            platform_cpu.alias_vllm_distribution()
        from vllm import LLM

        self.folder = folder
        self.llm = LLM(model=folder, **engine)

    def load(self, folder: str) -> None:
        """Switch to the weights of another folder of the same architecture and tokenizer."""
        if folder == self.folder:
            return
        counts = self.llm.collective_rpc("load_folder", args=(folder,))
        assert all(count > 0 for count in counts), f"no weights found in {folder}"
        self.llm.reset_prefix_cache()
        self.folder = folder

    def generate(
        self, prompts: list[list[int]], sampling: dict[str, Any], seeds: list[int] | None
    ) -> list[tuple[list[int], bool]]:
        """(token ids, whether the token limit cut them) per prompt (token ids). `seeds`: of each; None = greedy."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        params = [SamplingParams(**sampling, seed=seeds[i] if seeds else None) for i in range(len(prompts))]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        stops = {str(output.outputs[0].finish_reason) for output in outputs} - {"stop", "length"}
        if stops:
            raise RuntimeError(
                f"the engine ended responses for the reason {', '.join(sorted(stops))}; they are not whole"
            )
        completions = [output.outputs[0] for output in outputs]
        return [(list(out.token_ids), out.finish_reason == "length") for out in completions]

    def answer(self, prompts: list[list[int]], samplings: list[dict[str, Any]]) -> list[tuple[list[int], str]]:
        """(token ids, finish reason) per prompt, each with its own settings, a JSON schema among them
        (`json_schema`). The reason is "refused: ..." if vLLM rejects a prompt or its schema."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        def params(sampling: dict[str, Any]) -> Any:
            schema = sampling.pop("json_schema", None)
            return SamplingParams(
                **sampling, structured_outputs=StructuredOutputsParams(json=schema) if schema is not None else None
            )

        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        try:
            outputs = self.llm.generate(inputs, [params(dict(s)) for s in samplings], use_tqdm=False)
        except ValueError as error:  # vLLM refuses the whole batch for one request's sake
            if len(prompts) == 1:
                return [([], f"refused: {error}")]
            return [self.answer([ids], [s])[0] for ids, s in zip(prompts, samplings, strict=True)]
        completions = [output.outputs[0] for output in outputs]
        return [(list(out.token_ids), str(out.finish_reason)) for out in completions]


class Engines:
    """`count` engines of `tensor` devices each with the weights of one folder. They hold the devices until `close`."""

    def __init__(self, folder: str, options: dict[str, Any], *, device: str, count: int, tensor: int) -> None:
        """`options` are vLLM's engine arguments. TagprError if the cluster has no room for all engines."""
        self._stack = ExitStack()
        group = self._stack.enter_context(reserved(count, tensor))
        actor: Any = Generator
        self._actors: list[Any] = []
        for number in range(count):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
            start = actor.options(num_gpus=tensor, scheduling_strategy=place)
            self._actors.append(start.remote(folder, options, device))
            self._stack.callback(ray.kill, self._actors[-1], no_restart=True)

    def close(self) -> None:
        """End the engines and free their devices."""
        self._stack.close()

    def load(self, folder: str) -> None:
        """Switch all engines to the weights of another folder of the same architecture and tokenizer."""
        for task in [actor.load.remote(folder) for actor in self._actors]:
            result(task)

    def generate(
        self, prompts: Sequence[list[int]], sampling: dict[str, Any], seeds: Sequence[int] | None = None
    ) -> list[tuple[list[int], bool]]:
        """As `Generator.generate`."""
        hands = dealt(prompts, len(self._actors))
        own = dealt(seeds, len(self._actors)) if seeds is not None else [None] * len(hands)
        tasks = [
            actor.generate.remote(hand, sampling, seeds_of_hand)
            for actor, hand, seeds_of_hand in zip(self._actors, hands, own, strict=True)
            if hand
        ]
        return gathered([result(task) for task in tasks])

    def answer(self, prompts: Sequence[list[int]], samplings: Sequence[dict[str, Any]]) -> list[tuple[list[int], str]]:
        """As `Generator.answer`."""
        hands = dealt(list(zip(prompts, samplings, strict=True)), len(self._actors))
        tasks = [
            actor.answer.remote([ids for ids, _ in hand], [sampling for _, sampling in hand])
            for actor, hand in zip(self._actors, hands, strict=True)
            if hand
        ]
        return gathered([result(task) for task in tasks])
