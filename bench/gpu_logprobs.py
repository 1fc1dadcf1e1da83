"""Log-probabilities that vLLM reports for its own tokens against those that the update computes for them.

bench/gpu.py runs it in a process of its own: python bench/gpu_logprobs.py SHAPE DEVICE SEQUENCES TOKENS. The weights
are random, of the shape's sizes, and both sides compute in bfloat16 (float32 on a CPU). One JSON object on
standard output's last line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch


def gaps(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Differences of log-probabilities [B, R], and of the probabilities."""
    apart = (ours - theirs).abs()
    return {
        "largest_gap": apart.max().item(), "mean_gap": apart.mean().item(),
        "largest_probability_gap": (ours.exp() - theirs.exp()).abs().max().item(),
        "mean_ratio": (ours - theirs).exp().mean().item(),
    }  # fmt: skip


def rollout(folder: str, prompts: list[list[int]], tokens: int, device: str) -> tuple[list[list[int]], torch.Tensor]:
    """Sampled token ids of each prompt, and vLLM's log-probabilities of them [B, R]."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    here: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "dtype": "float32"}
    there: dict[str, Any] = {"gpu_memory_utilization": 0.4, "dtype": "bfloat16"}
    llm = LLM(
        model=folder, skip_tokenizer_init=True, max_model_len=len(prompts[0]) + tokens, seed=0, disable_log_stats=True,
        **(here if device == "cpu" else there),
    )  # fmt: skip
    sampling = SamplingParams(temperature=1.0, max_tokens=tokens, logprobs=0, detokenize=False, ignore_eos=True)
    inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    made = [output.outputs[0] for output in llm.generate(inputs, sampling, use_tqdm=False)]
    ids = [list(out.token_ids) for out in made]
    chosen = [
        [entry[token].logprob for entry, token in zip(out.logprobs, row, strict=True)]
        for out, row in zip(made, ids, strict=True)
    ]
    return ids, torch.tensor(chosen)


def main(words: list[str]) -> int:
    """Print the gaps of one shape."""
    shape_name, device, sequences, tokens = words[0], words[1], int(words[2]), int(words[3])
    if device == "cpu":
        from tagpr_rl.backend import platform_cpu

        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
        platform_cpu.alias_vllm_distribution()
    from gpu_engines import last_logprobs, policy
    from gpu_measures import NAMES

    shape = NAMES[shape_name]
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    prompts = torch.randint(shape.vocab, (sequences, 32)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        policy(shape, "cpu", dtype, False).save_pretrained(folder)
        ids, theirs = rollout(folder, prompts, tokens, device)
        from transformers import Qwen3ForCausalLM

        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    rows = torch.tensor([prompt + row for prompt, row in zip(prompts, ids, strict=True)], device=device)
    with torch.no_grad():
        ours = last_logprobs(model, rows, tokens).cpu()
    print(json.dumps(gaps(ours, theirs)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
