"""Generation outside the training loop: evaluation, PRMU's policy samples, `walk --live`, `chat`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.backend.rollout.engines import Engines
from tagpr_rl.backend.rollout.places import request_seed
from tagpr_rl.config import GrpoStage, Recipe, SftStage, prompt_style
from tagpr_rl.config.placement import OFFLINE_SHARE, engine_count
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import Prompt, TagprError

UNSPLIT_PROMPTS = {"enable_chunked_prefill": False}
"""vLLM's options for the CPU. It turns back the generator of a request whose prompt is split over two passes, which
torch's CPU generator cannot do (gpu_model_runner.py:3750 in 0.27.1)."""


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
