"""Generation outside the training loop: evaluation, PRMU's policy samples, `walk --live`, `chat`.

vLLM engines in Ray actors, with one model on all of them: requests are dealt out, answers come back in their order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tagpr_rl.backend.rollout.places import request_seed
from tagpr_rl.backend.session.room import reserved
from tagpr_rl.backend.session.supervisor import result
from tagpr_rl.config import GrpoStage, Recipe, SftStage, prompt_style
from tagpr_rl.config.placement import OFFLINE_SHARE, engine_count
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import Prompt, TagprError

Item = TypeVar("Item")
UNSPLIT_PROMPTS = {"enable_chunked_prefill": False}
"""vLLM's options for the CPU. It turns back the generator of a request whose prompt is split over two passes, which
torch's CPU generator cannot do (gpu_model_runner.py:3750 in 0.27.1)."""


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


def engine_options(recipe: Recipe, response_tokens: int | None = None, tensor: int | None = None) -> dict[str, Any]:
    """vLLM engine arguments for evaluation, from the recipe. `response_tokens`: see `Engine`; `tensor`: devices of an
    engine, None = placement.tensor_parallel."""
    prompt, platform = recipe.data.prompt, recipe.platform
    length = prompt.max_tokens + (response_tokens or prompt.max_response_tokens)
    options: dict[str, Any] = {
        "dtype": recipe.model.dtype,
        "max_model_len": length,
        "max_num_seqs": 256,
        "worker_extension_cls": "tagpr_rl.backend.rollout.vllm_worker.TagprWorkerExtension",
        "seed": 0,
        "disable_log_stats": True,
    }
    if platform.device == "cpu":
        options |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": platform.vllm_memory_mb << 20,
            "distributed_executor_backend": "uni",
            **UNSPLIT_PROMPTS,
        }
    else:
        options["gpu_memory_utilization"] = OFFLINE_SHARE
        options["tensor_parallel_size"] = tensor or recipe.placement.tensor_parallel
        if options["tensor_parallel_size"] > 1:
            # In an actor with a placement group vLLM would start workers by Ray (config/parallel.py), outside of it.
            options["distributed_executor_backend"] = "mp"
    return options


def response_room(recipe: Recipe, folder: Path) -> int:
    """Most tokens that the model in `folder` can write after the longest prompt."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return int(getattr(config, "max_position_embeddings", sys.maxsize)) - recipe.data.prompt.max_tokens


class Engine:
    """A `generate(prompts) -> texts` on engines in Ray actors; a context manager that frees their devices.

    `response_tokens`: room for one response; None = data.prompt.max_response_tokens. `count`: engines; None = all that
    the run's devices have room for.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, response_tokens: int | None = None, *, count: int | None = None
    ) -> None:
        self.recipe = recipe
        self._text = ChatTokenizer(folder, schema=schema_from(recipe.schema_file)).text
        tensor = recipe.placement.tensor_parallel
        self._engines = Engines(
            str(folder),
            engine_options(recipe, response_tokens),
            device=recipe.platform.device,
            count=count or engine_count(recipe.platform, recipe.placement, tensor),
            tensor=tensor,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._engines.close()

    def use(self, folder: Path) -> None:
        """Generate with the weights of `folder` from now on."""
        self._engines.load(str(folder))

    def __call__(self, prompts: Sequence[list[int]], *, temperature: float, seed: int = 0) -> list[str]:
        """Texts for prompts given as token ids; greedy when temperature is 0, else by `seed` and a prompt's number."""
        return [text for text, _ in self.responses(prompts, temperature=temperature, seed=seed)]

    def responses(
        self, prompts: Sequence[list[int]], *, temperature: float, seed: int = 0, max_tokens: int | None = None
    ) -> list[tuple[str, bool]]:
        """As a call, with whether the token limit (None = data.prompt.max_response_tokens) cut the text."""
        sampling = {
            "temperature": temperature,
            "max_tokens": max_tokens or self.recipe.data.prompt.max_response_tokens,
            "detokenize": False,
        }
        seeds = [request_seed(seed, [number]) for number in range(len(prompts))] if temperature > 0 else None
        answers = self._engines.generate(prompts, sampling, seeds)
        return [(self._text(prompt, ids), cut) for prompt, (ids, cut) in zip(prompts, answers, strict=True)]


class LiveModel:
    """The newest trained policy of a run, for `tagpr walk --live`: a prompt -> one GRPO group of responses."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        trained = [
            name
            for name, stage in recipe.stages.items()
            if isinstance(stage, GrpoStage | SftStage) and prompt_style(recipe, name) == "reasoning"
        ]
        done = [name for name in trained if read_manifest(stage_dir(recipe, run, name)) is not None]
        if not done:
            raise TagprError(
                f"--live: no stage of {run.root} that reasons is finished ({', '.join(trained)}); run the recipe first"
            )
        self.recipe, self.name = recipe, done[-1]
        self.folder = stage_dir(recipe, run, self.name).hf.resolve()

    def __call__(self, prompt: Prompt) -> list[str]:
        """Sampled responses at the first GRPO stage's temperature and group size."""
        from tagpr_rl.backend.session.ray_session import ray_session

        grpo = next((s for s in self.recipe.stages.values() if isinstance(s, GrpoStage)), None)
        size, temperature = (grpo.group_size, grpo.temperature) if grpo is not None else (4, 1.0)
        tokenizer = ChatTokenizer(self.folder)
        ids = tokenizer.encode(tokenizer.render(prompt.messages))
        with ray_session(self.recipe), Engine(self.recipe, self.folder, count=1) as engine:
            return engine([ids] * size, temperature=temperature)
