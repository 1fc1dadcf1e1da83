"""Generation outside the training loop: evaluation, model teachers, `walk --live`. vLLM in a Ray actor."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.config import Recipe


@ray.remote(num_cpus=1, num_gpus=1)
class Generator:
    """One vLLM engine; weights can be exchanged without starting another."""

    def __init__(self, folder: str, engine: dict[str, Any], device: str) -> None:
        from tagpr_rl.backend import platform_cpu

        if device == "cpu":
            import os

            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ["TORCH_COMPILE_DISABLE"] = "1"
            platform_cpu.patches.before_verl()
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

    def generate(self, prompts: list[list[int]], sampling: dict[str, Any]) -> list[str]:
        """One response per prompt (token ids), decoded without special tokens, in order."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
            SamplingParams(**sampling),
            use_tqdm=False,
        )
        return [output.outputs[0].text for output in outputs]

    def close(self) -> None:
        """Free the engine."""
        del self.llm
        gc.collect()


def engine_options(recipe: Recipe) -> dict[str, Any]:
    """vLLM engine arguments for evaluation, from the recipe."""
    prompt, platform = recipe.data.prompt, recipe.platform
    options: dict[str, Any] = {
        "dtype": recipe.model.dtype,
        "max_model_len": prompt.max_tokens + prompt.max_response_tokens,
        "max_num_seqs": 256,
        "worker_extension_cls": "tagpr_rl.backend.vllm_worker.TagprWorkerExtension",
        "seed": 0,
        "disable_log_stats": True,
    }
    if platform.device == "cpu":
        options |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": platform.vllm_memory_mb << 20,
            "distributed_executor_backend": "uni",
        }
    else:
        options["gpu_memory_utilization"] = platform.vllm_gpu_utilization
    return options


class Engine:
    """A `generate(prompts) -> texts` on a Ray actor; a context manager that frees the device."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.actor = Generator.remote(str(folder), engine_options(recipe), recipe.platform.device)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        ray.kill(self.actor, no_restart=True)

    def use(self, folder: Path) -> None:
        """Generate with the weights of `folder` from now on."""
        ray.get(self.actor.load.remote(str(folder)))

    def __call__(self, prompts: Sequence[list[int]], *, temperature: float, seed: int = 0) -> list[str]:
        """Texts for prompts given as token ids; greedy when temperature is 0."""
        sampling = {
            "temperature": temperature,
            "max_tokens": self.recipe.data.prompt.max_response_tokens,
            "seed": seed if temperature > 0 else None,
            "skip_special_tokens": True,
        }
        texts: list[str] = ray.get(self.actor.generate.remote(list(prompts), sampling))
        return texts
