"""One process of tests/contract/test_deepspeed.py: trains a tiny model with verl's engines, as the jobs say.

Run by torchrun with a JSON file of jobs. Each job writes `<out>.json` (losses, gradient norms, learning rates, ...)
and `<out>.safetensors` (the weights as exported for the rollout), from the first process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"VERL_PLATFORM": "cpu", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import sft_loss

from tagpr_rl.backend.deepspeed.engine import DeepSpeedEngineConfig
from tagpr_rl.backend.forward.checksum import CHECKSUM
from tagpr_rl.types import TagprError

BATCH = 8
"""Sequences per step over all processes; a process takes 2 at a time."""


def batch(step: int, vocab: int) -> Any:
    """This process's share of the batch of `step`: the same sequences for any number of processes."""
    generator = torch.Generator().manual_seed(1000 + step)
    rows = []
    for _ in range(BATCH):
        length = int(torch.randint(5, 24, (1,), generator=generator))
        ids = torch.randint(4, vocab, (length,), generator=generator)
        mask = torch.ones_like(ids)
        mask[:3] = 0
        rows.append({"input_ids": ids, "position_ids": torch.arange(length), "loss_mask": mask})
    mine = rows[dist.get_rank() :: dist.get_world_size()]
    meta = {
        "use_remove_padding": False, "use_dynamic_bsz": False, "max_token_len_per_gpu": 4096,
        "micro_batch_size_per_gpu": 2, "temperature": 1.0, "global_batch_size": BATCH,
        "pad_mode": DatasetPadMode.NO_PADDING, "pad_token_id": 0,
    }  # fmt: skip
    return tu.get_tensordict(tensor_dict=SFTTensorCollator(DatasetPadMode.NO_PADDING)(mine), non_tensor_dict=meta)


def engine_of(job: dict[str, Any]) -> Any:
    compute = {"param_dtype": job.get("dtype", "fp32"), "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    common: dict[str, Any] = {
        "strategy": job["strategy"], "use_torch_compile": False, "mixed_precision": compute,
        "use_dynamic_bsz": False, "use_remove_padding": False, "micro_batch_size_per_gpu": 2,
        "forward_only": job.get("forward_only", False),
    }  # fmt: skip
    if job["strategy"] == "deepspeed":
        config: Any = DeepSpeedEngineConfig(**common, **job["zero"])
    else:
        config = FSDPEngineConfig(**common)
    contents = ["model", "optimizer", "extra"]
    model = HFModelConfig(
        path=job["model"],
        external_lib=["tagpr_rl.backend.trainer.worker_hooks", "tagpr_rl.backend.deepspeed.engine"],
        enable_gradient_checkpointing=False,
        use_remove_padding=False,
        override_config={"attn_implementation": "sdpa"},
    )
    engine = EngineRegistry.new(
        model_type="language_model",
        backend=job["strategy"],
        model_config=model,
        engine_config=config,
        optimizer_config=FSDPOptimizerConfig(
            lr=3e-3,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            clip_grad=job.get("clip", 1.0),
            lr_warmup_steps=3,
            lr_scheduler_type="cosine",
            total_training_steps=12,
        ),
        checkpoint_config=CheckpointConfig(save_contents=[*contents, "hf_model"], load_contents=contents),
    )
    engine.initialize()
    return engine


def train(engine: Any, job: dict[str, Any], vocab: int) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {"loss": [], "norm": [], "lr": []}
    for step in range(job.get("first", 0), job.get("first", 0) + job["steps"]):
        with engine.train_mode():
            output = engine.train_batch(batch(step, vocab), loss_function=partial(sft_loss, config=None))
        loss = torch.tensor(output["loss"]).sum()
        dist.all_reduce(loss, op=dist.ReduceOp.SUM)
        rows["loss"].append(float(loss) / dist.get_world_size())
        rows["norm"].append(float(output["metrics"]["grad_norm"]))
        rows["lr"].append(float(engine.lr_scheduler_step()))
        if step + 1 == job.get("save_at"):
            engine.save_checkpoint(job["save"], global_step=step + 1)
    return rows


def train_reward_model(job: dict[str, Any]) -> None:
    """PRMU on a toy task, two pairs per process and update, one at a time."""
    from prmu_toy import toy_backbone, toy_pairs

    from tagpr_rl.backend.deepspeed.prmu import ZeroPrmuEngine
    from tagpr_rl.config import DeepSpeedBlock
    from tagpr_rl.prmu.training.config import PrmuConfig
    from tagpr_rl.prmu.training.sharding import Fsdp2Engine
    from tagpr_rl.prmu.training.train import train_prmu

    out = Path(job["out"])
    if dist.get_rank() == 0:
        toy_backbone(out.parent / "toy")
    dist.barrier()
    make: Any = Fsdp2Engine
    if job["strategy"] == "deepspeed":
        make = partial(ZeroPrmuEngine, DeepSpeedBlock(**job["zero"]))
    config = PrmuConfig(
        steps=job["steps"], batch_size=2 * dist.get_world_size(), micro_batch_size=1, lr=1e-3, head_lr=3e-3, heads=2,
        warmup=2, grad_clip=0.1, device="cpu",
    )  # fmt: skip
    train = partial(train_prmu, toy_pairs(8), backbone=out.parent / "toy", out=out, config=config)
    if job["strategy"] == "deepspeed":  # interrupted after three updates, it goes on from the checkpoint of step 2
        checkpoints = Checkpoints(out.parent / f"{out.name}_steps")
        with suppress(Interrupted):
            train(make_engine=interrupted(make, 3), checkpoints=checkpoints)
            raise AssertionError("it was not interrupted")
        train(make_engine=make, checkpoints=checkpoints)
    else:
        train(make_engine=make)


class Interrupted(Exception):
    """Stands for the end of the process."""


def interrupted(make: Any, after: int) -> Any:
    """Engines that raise in the update after `after`, on every process."""

    def build(*arguments: Any) -> Any:
        engine = make(*arguments)
        update, done = engine.update, iter(range(after))

        def counted() -> float:
            if next(done, None) is None:
                raise Interrupted
            return float(update())

        engine.update = counted
        return engine

    return build


class Checkpoints:
    """A folder per step, for prmu.training."""

    every = 2

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """The step's folder."""
        (self.root / str(step)).mkdir(parents=True)
        yield self.root / str(step)

    def newest(self) -> Path | None:
        """The latest step's folder."""
        return max(self.root.glob("*"), key=lambda path: int(path.name), default=None)


def run(job: dict[str, Any]) -> None:
    if job.get("kind") == "prmu":
        train_reward_model(job)
        return
    torch.manual_seed(job.get("seed", 5))
    actual: dict[str, Any] = {"error": ""}
    weights: dict[str, torch.Tensor] = {}
    try:
        engine = engine_of(job)
        vocab = engine.model_config.hf_config.vocab_size
        if "load" in job:
            engine.load_checkpoint(job["load"])
        if job.get("poison"):
            for parameter in engine.module.parameters():
                parameter.register_hook(lambda grad: grad * float("nan"))
        if job.get("forward_only"):
            with engine.eval_mode():
                data = batch(0, vocab)
                output = engine.infer_batch(data)
            logprobs = output["model_output"]["log_probs"].values()
            # The CPU engine has no log-probabilities outside of the loss.
            losses = torch.roll(data["loss_mask"].values(), shifts=-1).bool()
            actual["logprob_sum"] = [float(logprobs[losses].double().sum())]
        else:
            actual |= train(engine, job, vocab)
            actual["random"] = float(torch.rand(()))
        if not job.get("forward_only"):
            names = []
            for name, tensor in engine.get_per_tensor_param()[0]:
                if name != CHECKSUM:
                    names.append(name)
                    weights[name] = tensor.detach().clone()
            actual["names"] = names
    except (TagprError, ValueError) as error:
        actual["error"] = str(error)
    if dist.get_rank() == 0:
        out = Path(job["out"])
        out.with_suffix(".json").write_text(json.dumps(actual), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out.with_suffix(".safetensors"))
    dist.barrier()


def main() -> None:
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).resolve().parent))
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(job)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
