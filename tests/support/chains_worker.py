"""The chain factory with one trained tiny model as teacher and labeller, in a vLLM engine of this process.

Arguments: the model's folder, the data stage's folder, a folder to work in. Prints one JSON object.

The demo's vocabulary is the world's words, so that it cannot spell JSON. A copy of the model gets the missing pieces as
new tokens (their embeddings are new too: nobody expects good labels, only valid ones).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tagpr_rl.chains.build import build_chains
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.usage import MeteredLabeller, MeteredTeacher
from tagpr_rl.chains.evidence import EvidenceRules, ProfilePool, ProfileSwap
from tagpr_rl.chains.facts import chain_facts
from tagpr_rl.chains.keep import Rejection, world_keep_rules
from tagpr_rl.chains.labellers.label import ModelLabeller, ScriptedLabeller
from tagpr_rl.chains.teachers.interface import Sampling, TrainedTeacher
from tagpr_rl.data.lamp import load_folder
from tagpr_rl.prompts.prompt import build_prompt
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ParseStatus, Prompt

TASKS = ("LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4")
PER_TASK, SAMPLES = 6, 2
SCHEMA = default_schema()


WORDS = ("steps", "i", "tag", *SCHEMA.names)
PIECES = ("{", "}", "[", "]", ", ", ": ", *"0123456789", *(f'"{word}"' for word in WORDS))


def with_json_pieces(source: Path, target: Path) -> Path:
    """A copy of the model whose vocabulary can write labels."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([piece for piece in PIECES if piece not in tokenizer.get_vocab()])
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if (source / "tiny.json").is_file():
        shutil.copy(source / "tiny.json", target)
    return target


class Offline:
    """A Generator on a vLLM engine."""

    name = "tiny"

    def __init__(self, folder: Path) -> None:
        from vllm import LLM

        self.tokenizer = ChatTokenizer(folder)
        self.llm = LLM(
            model=str(folder), dtype="float32", max_model_len=1536, max_num_seqs=64, enforce_eager=True, seed=0,
            kv_cache_memory_bytes=256 << 20, distributed_executor_backend="uni", disable_log_stats=True,
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        )  # fmt: skip
        vocabulary = self.tokenizer.tokenizer.get_vocab()
        # Other words could begin what they cannot end (a lone quotation mark), and the grammar would have no way on.
        self.pieces = [*(vocabulary[piece] for piece in PIECES), self.tokenizer.end]
        self.labels: list[str] = []

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        def sampling(request: ChatRequest) -> Any:
            held = StructuredOutputsParams(json=dict(request.json_schema)) if request.json_schema else None
            return SamplingParams(
                temperature=request.temperature,
                max_tokens=request.max_tokens,
                structured_outputs=held,
                allowed_token_ids=self.pieces if held else None,
            )

        prompts = [self.tokenizer.encode(self.tokenizer.render(request.messages)) for request in requests]
        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], [sampling(r) for r in requests], use_tqdm=False
        )
        replies = []
        for request, output in zip(requests, outputs, strict=True):
            (done,) = output.outputs
            status = ReplyStatus.LENGTH if done.finish_reason == "length" else ReplyStatus.OK
            replies.append(Reply(done.text, status, len(output.prompt_token_ids), len(done.token_ids)))
            if request.json_schema and status is ReplyStatus.OK:
                self.labels.append(done.text)
        return replies


def main(folder: Path, data: Path, work: Path) -> dict[str, Any]:
    """Build chains twice with the model as teacher: labelled by itself and by rules."""
    records = [r for task in TASKS for r in load_folder(data / "lamp", [task], "train")[:PER_TASK]]
    model = Offline(with_json_pieces(folder, work / "model"))

    def make_prompt(record: LampRecord) -> Prompt:
        count = model.tokenizer.count
        return build_prompt(
            record, rank(record, 4), style="reasoning", schema=SCHEMA, max_tokens=512, count_tokens=count
        )

    swap = ProfileSwap(ProfilePool(records, 1), lambda record: rank(record, 4), make_prompt)
    out: dict[str, Any] = {}
    for name, labels in (("own", ModelLabeller(model, exact=True)), ("rules", ScriptedLabeller())):
        teacher, labeller = MeteredTeacher(TrainedTeacher(model, SCHEMA, Sampling(1.0, 160))), MeteredLabeller(labels)
        rules = replace(world_keep_rules(), label_twice=True, evidence=EvidenceRules("measure"))
        chains = build_chains(
            records, [make_prompt(r) for r in records], teacher, labeller, SCHEMA, rules,
            samples=SAMPLES, swap=swap,
        )  # fmt: skip
        assert all(parse(row.response, SCHEMA).status is ParseStatus.OK for row in chains.rows + chains.wrong)
        facts = chain_facts(chains, SCHEMA, rules, teacher, labeller)
        out[name] = {"facts": facts, "outcomes": sum(chains.counts[key] for key in ("kept", *Rejection))}
    out["labels"] = model.labels
    return out


if __name__ == "__main__":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1", "VERL_PLATFORM": "cpu"}
    from tagpr_rl.backend import platform_cpu  # reads the platform when it is imported

    platform_cpu.alias_vllm_distribution()
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
