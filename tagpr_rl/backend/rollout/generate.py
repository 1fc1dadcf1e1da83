"""Generation outside the training loop: evaluation, model teachers, `walk --live`. vLLM in a Ray actor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.backend.rollout.places import request_seed
from tagpr_rl.backend.session.supervisor import result
from tagpr_rl.config import GrpoStage, Recipe, SftStage, prompt_style
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import Prompt, TagprError

UNSPLIT_PROMPTS = {"enable_chunked_prefill": False}
"""vLLM's options for the CPU. It turns back the generator of a request whose prompt is split over two passes, which
torch's CPU generator cannot do (gpu_model_runner.py:3750 in 0.27.1)."""


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


def engine_options(recipe: Recipe, response_tokens: int | None = None) -> dict[str, Any]:
    """vLLM engine arguments for evaluation, from the recipe. `response_tokens`: see `Engine`."""
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
        options["gpu_memory_utilization"] = platform.vllm_gpu_utilization
        options["tensor_parallel_size"] = recipe.placement.tensor_parallel
    return options


def response_room(recipe: Recipe, folder: Path) -> int:
    """Most tokens that the model in `folder` can write after the longest prompt."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return int(getattr(config, "max_position_embeddings", sys.maxsize)) - recipe.data.prompt.max_tokens


class Engine:
    """A `generate(prompts) -> texts` on a Ray actor; a context manager that frees the device.

    `response_tokens`: room for one response; None = data.prompt.max_response_tokens.
    """

    def __init__(self, recipe: Recipe, folder: Path, response_tokens: int | None = None) -> None:
        self.recipe = recipe
        self._text = ChatTokenizer(folder, schema=schema_from(recipe.schema_file)).text
        actor = Generator.options(num_gpus=recipe.placement.tensor_parallel)  # type: ignore[attr-defined]
        self.actor = actor.remote(str(folder), engine_options(recipe, response_tokens), recipe.platform.device)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        ray.kill(self.actor, no_restart=True)

    def use(self, folder: Path) -> None:
        """Generate with the weights of `folder` from now on."""
        result(self.actor.load.remote(str(folder)))

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
        answers = result(self.actor.generate.remote(list(prompts), sampling, seeds))
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
        with ray_session(self.recipe), Engine(self.recipe, self.folder) as engine:
            return engine([ids] * size, temperature=temperature)
