"""TRL's half of bench/trl.py: times GRPOTrainer steps. Run by bench/trl.py with an interpreter that has TRL.

Reads the job as JSON from the file named first, writes the rows to the file named second. Imports no verl, vLLM or Ray.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tagpr_rl.reward.components import short_form
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.tags.schema import default_schema

PACKAGES = ("trl", "torch", "transformers", "accelerate", "datasets", "numpy")


class StepClock(TrainerCallback):
    """Rows of seconds: `step` from a step's begin to its end, `wall` from the end of the step before to its end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._begun = self._ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._ended = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.rows.append({"step": state.global_step, "seconds": now - self._begun, "wall": now - self._ended})
        self._ended = now

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.rows and logs and "reward" in logs:
            self.rows[-1] |= {key: float(logs[key]) for key in ("reward", "entropy", "grad_norm")}
            self.rows[-1]["tokens"] = float(logs["completions/mean_length"])


def make_reward(weights: dict[str, float]) -> Any:
    """TRL's reward function: the rubric's total without PRMU, a pure function of text, task and gold."""
    rubric = Rubric(default_schema(), short_form(**weights))

    def rubric_total(completions: list[Any], task: list[str], gold: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [rubric.score(text, task=t, gold=g).total for text, t, g in zip(texts, task, gold, strict=True)]

    return rubric_total


def config(job: dict[str, Any]) -> GRPOConfig:
    """The same step as this project's: one optimizer update, on-policy, no reference model, token-mean loss, fp32."""
    samples = job["prompts"] * job["group"]
    micro = min(job["micro_batch"], samples)
    return GRPOConfig(
        output_dir=job["scratch"],
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=samples // micro,
        num_generations=job["group"],
        max_completion_length=job["tokens"],
        generation_kwargs={"min_new_tokens": job["tokens"]},  # no end of text before the last token
        temperature=job["temperature"],
        beta=0.0,
        num_iterations=1,
        epsilon=job["clip"],
        loss_type="dapo",  # mean over all tokens of the accumulated batch: verl's token-mean
        scale_rewards="group",
        max_steps=job["steps"],
        shuffle_dataset=False,
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch",
        adam_beta1=job["betas"][0],
        adam_beta2=job["betas"][1],
        weight_decay=job["weight_decay"],
        max_grad_norm=job["max_grad_norm"],
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
    )


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    clock = StepClock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa"),
        reward_funcs=make_reward(job["weights"]),
        args=config(job),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        callbacks=[clock],
    )
    trainer.train()
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    Path(sys.argv[2]).write_text(json.dumps({"rows": clock.rows, "versions": versions}), encoding="utf-8")


if __name__ == "__main__":
    main()
