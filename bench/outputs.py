"""What handing over finished responses saves: vLLM's scheduler, its messages and the server's part, without a model.

Run: python bench/outputs.py [--sizes 8x4x64,32x8x256]

Processor seconds of a step's rollout in the engine process (taking up the model's output, encoding the messages) and in
the server's (decoding them, making responses), for vLLM's scheduler and this project's, in turn. Tokens are made up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from rich.console import Console
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.structured_output import StructuredOutputManager

SCHEDULERS = {"vLLM's": None, "ours": "tagpr_rl.backend.rollout.finished.scheduler"}
REPEATS, BLOCK, BLOCKS = 5, 128, 4000
PROMPT = list(range(1, 49))


def scheduler(model: str, name: str | None, tokens: int) -> Any:
    """The scheduler `name` as vLLM's engine makes it (v1/engine/core.py:147); None = vLLM's own."""
    length = len(PROMPT) + tokens
    config = VllmConfig(
        model_config=ModelConfig(model=model, skip_tokenizer_init=True, dtype="float32", max_model_len=length),
        scheduler_config=SchedulerConfig(
            max_num_seqs=256, max_num_batched_tokens=16384, max_model_len=length, is_encoder_decoder=False,
            scheduler_cls=name,
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=False),
        device_config=DeviceConfig("cpu"),
    )  # fmt: skip
    config.cache_config.num_gpu_blocks = BLOCKS
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        hash_block_size=BLOCK,
    )


def rollout(engine: Any, responses: int, tokens: int) -> tuple[float, float, int]:
    """(engine's processor seconds, server's, bytes sent) of `responses` with `tokens` tokens each."""
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
    server = OutputProcessor(None, log_stats=False)
    kind = RequestOutputKind.FINAL_ONLY
    for i in range(responses):
        sampling = SamplingParams(max_tokens=tokens, logprobs=0, output_kind=kind, detokenize=False, ignore_eos=True)
        engine.add_request(Request(f"r{i}", PROMPT, sampling_params=sampling, pooling_params=None))
        request = EngineCoreRequest(f"r{i}", PROMPT, None, sampling, None, 0.0, None, None, None)
        request.external_req_id = request.request_id
        server.add_request(request, None, None, 0, RequestOutputCollector(kind, request.request_id))
    seconds, size = [0.0, 0.0], 0
    generator = np.random.default_rng(0)
    while names := list((work := engine.schedule()).num_scheduled_tokens):
        ids = generator.integers(9, 250, (len(names), 1), dtype=np.int32)
        logprobs = LogprobsLists(ids, -generator.random((len(names), 1), dtype=np.float32), ids[:, 0].copy())
        rows = {name: row for row, name in enumerate(names)}
        output = ModelRunnerOutput(names, rows, ids.tolist(), logprobs=logprobs)
        began = time.process_time()
        messages = [encoder.encode(sent) for sent in engine.update_from_output(work, output).values()]
        encoded = time.process_time()
        for message in messages:
            server.process_outputs(decoder.decode(message).outputs)
        seconds = [seconds[0] + encoded - began, seconds[1] + time.process_time() - encoded]
        size += sum(memoryview(part).nbytes for message in messages for part in message)
    assert not server.has_unfinished_requests()
    return seconds[0], seconds[1], size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="8x4x64,16x8x128,32x8x256", help="prompts x samples x new tokens")
    sizes = parser.parse_args().sizes.split(",")
    torch.set_num_threads(1)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as model:
        transformers.Qwen3Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
            architectures=["Qwen3ForCausalLM"],
        ).save_pretrained(model)  # fmt: skip
        for size in sizes:
            prompts, samples, tokens = (int(part) for part in size.split("x"))
            figures: dict[str, list[tuple[float, float, int]]] = {name: [] for name in SCHEDULERS}
            for _ in range(REPEATS):
                for name, path in SCHEDULERS.items():
                    figures[name].append(rollout(scheduler(model, path, tokens), prompts * samples, tokens))
            for name, runs in figures.items():
                engine, server = (statistics.median(run[part] for run in runs) for part in (0, 1))
                console.print(f"{size} {name}: engine {engine:.3f} s, server {server:.3f} s, {runs[0][2]:,} bytes")


if __name__ == "__main__":
    main()
