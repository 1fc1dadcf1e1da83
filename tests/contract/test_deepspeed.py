"""The engine `deepspeed` trains as verl's FSDP2 engine does; its checkpoints, exports and refusals.

Three launches of tests/support/deepspeed_worker.py do all the training: one process, two processes, and one process
again that loads what two wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
STEPS, HALF = 6, 3
STAGES = (1, 2, 3)


@dataclass
class Run:
    """What a job wrote."""

    loss: list[float]
    norm: list[float]
    lr: list[float]
    names: list[str]
    weights: dict[str, Any]
    random: float
    error: str
    logprob_sum: list[float]


def read(path: Path) -> Run:
    from safetensors.torch import load_file

    actual = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    lists = {key: actual.get(key, []) for key in ("loss", "norm", "lr", "names", "logprob_sum")}
    weights = load_file(path.with_suffix(".safetensors"))
    return Run(**lists, weights=weights, random=actual.get("random", 0.0), error=actual["error"])


def launch(folder: Path, processes: int, jobs: dict[str, dict[str, Any]]) -> dict[str, Run]:
    """Run the jobs one after the other in the same processes."""
    folder.mkdir()
    common = {"strategy": "deepspeed", "steps": STEPS}
    rows = [
        {**common, "out": str(folder / name), "save": str(folder / f"{name}_ckpt"), **job} for name, job in jobs.items()
    ]
    plan = folder / "jobs.json"
    plan.write_text(json.dumps(rows), encoding="utf-8")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        str(ROOT / "tests/support/deepspeed_worker.py"), str(plan),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "deepspeed_shm_comm" not in done.stdout  # nothing was compiled
    return {name: read(folder / name) for name, job in jobs.items() if job.get("kind") != "prmu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Qwen3 with tied embeddings, and one without. 87 tokens: no shard of the embedding is a round number."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tagpr_rl.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("models")
    words = "the quick brown fox jumps over the lazy dog and " + " ".join(f"w{i}" for i in range(70))
    build_tiny(folder / "tied", corpus_texts=[words], hidden=64, layers=2, heads=2, ffn=96, seed=3)
    config = AutoConfig.from_pretrained(folder / "tied")
    config.tie_word_embeddings = False
    torch.manual_seed(11)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "untied")
    AutoTokenizer.from_pretrained(folder / "tied").save_pretrained(folder / "untied")
    return {"tied": str(folder / "tied"), "untied": str(folder / "untied")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def parity_jobs(model: str) -> dict[str, dict[str, Any]]:
    """fsdp2, then each ZeRO stage: whole, with a checkpoint written half way."""
    jobs: dict[str, dict[str, Any]] = {"fsdp2": {"strategy": "fsdp2", "model": model, "save_at": HALF}}
    for stage in STAGES:
        jobs[f"zero{stage}"] = {"model": model, "zero": {"zero_stage": stage}, "save_at": HALF}
    return jobs


def resumed(model: str, checkpoint: Path, stage: int, **zero: Any) -> dict[str, Any]:
    """The second half of the run that wrote `checkpoint`, from another seed."""
    return {
        "model": model, "zero": {"zero_stage": stage, **zero}, "load": str(checkpoint),
        "first": HALF, "steps": STEPS - HALF, "seed": 99,
    }  # fmt: skip


@pytest.fixture(scope="module")
def one(base: Path, models: dict[str, str]) -> dict[str, Run]:
    tied, here = models["tied"], base / "one"
    offload = {"zero_stage": 3, "offload_optimizer": True, "offload_params": True}
    return launch(here, 1, {
        **parity_jobs(tied),
        **{f"resumed{stage}": resumed(tied, here / f"zero{stage}_ckpt", stage) for stage in STAGES},
        "offload": {"model": tied, "zero": offload},
        "poison": {"model": tied, "zero": {"zero_stage": 2}, "poison": True, "steps": 1},
        "other_stage": resumed(tied, here / "zero2_ckpt", 1),
        "no_checkpoint": resumed(tied, here / "nothing_ckpt", 2),
    })  # fmt: skip


@pytest.fixture(scope="module")
def two(base: Path, models: dict[str, str], one: dict[str, Run]) -> dict[str, Run]:
    tied, untied, here = models["tied"], models["untied"], base / "two"
    half = {"model": tied, "dtype": "bf16"}
    return launch(here, 2, {
        **parity_jobs(tied),
        "resumed3": resumed(tied, here / "zero3_ckpt", 3),
        **{f"grown{stage}": resumed(tied, base / f"one/zero{stage}_ckpt", stage) for stage in (2, 3)},
        "grown_fsdp2": {**resumed(tied, base / "one/fsdp2_ckpt", 1), "strategy": "fsdp2"},
        "refused": resumed(tied, base / "one/zero2_ckpt", 2, universal_checkpoints=False),
        "untied_fsdp2": {"strategy": "fsdp2", "model": untied},
        "untied_zero3": {"model": untied, "zero": {"zero_stage": 3}},
        "bf16_fsdp2": {"strategy": "fsdp2", **half},
        **{f"bf16_zero{s}": {**half, "zero": {"zero_stage": s}, "save_at": STEPS} for s in STAGES},
        "reference_fsdp2": {"strategy": "fsdp2", "model": tied, "forward_only": True},
        **{f"reference_zero{s}": {"model": tied, "zero": {"zero_stage": s}, "forward_only": True} for s in (2, 3)},
        "prmu_fsdp2": {"kind": "prmu", "strategy": "fsdp2"},
        **{f"prmu_zero{s}": {"kind": "prmu", "zero": {"zero_stage": s}} for s in STAGES},
    })  # fmt: skip


@pytest.fixture(scope="module")
def back(base: Path, models: dict[str, str], two: dict[str, Run]) -> dict[str, Run]:
    """One process loads what two wrote."""
    tied = models["tied"]
    return launch(base / "back", 1, {
        **{f"shrunk{stage}": resumed(tied, base / f"two/zero{stage}_ckpt", stage) for stage in (1, 3)},
        "shrunk_fsdp2": {**resumed(tied, base / "two/fsdp2_ckpt", 1), "strategy": "fsdp2"},
    })  # fmt: skip


def furthest(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference over the tensors of `a`, all of which `b` must have."""
    assert a and set(a) <= set(b)
    return max(float((tensor.detach().float() - b[name].detach().float()).abs().max()) for name, tensor in a.items())


def start(model: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(Path(model) / "model.safetensors")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("processes", [1, 2])
def test_parity_with_fsdp2(
    stage: int, processes: int, one: dict[str, Run], two: dict[str, Run], models: dict[str, str]
) -> None:
    runs = one if processes == 1 else two
    mine, reference = runs[f"zero{stage}"], runs["fsdp2"]
    assert furthest(mine.loss, reference.loss) < 1e-5
    assert distance(mine.weights, reference.weights) < 1e-5
    assert distance(mine.weights, start(models["tied"])) > 1e-3  # they were trained
    assert min(reference.norm) > 1.5  # above the limit of 1: every update was clipped
    assert furthest(mine.norm, reference.norm) < 1e-5
    assert mine.lr == reference.lr and len(set(mine.lr)) == STEPS  # warm-up of 3 steps, then a cosine


def test_two_processes_train_as_one_does(one: dict[str, Run], two: dict[str, Run]) -> None:
    assert distance(one["zero3"].weights, two["zero3"].weights) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(stage: int, one: dict[str, Run]) -> None:
    whole, rest = one[f"zero{stage}"], one[f"resumed{stage}"]
    assert rest.error == ""
    assert rest.loss == whole.loss[HALF:] and rest.lr == whole.lr[HALF:]
    assert distance(rest.weights, whole.weights) == 0.0
    assert rest.random == whole.random  # the generators were restored: the resumed run had another seed


def test_a_resumed_run_of_two_processes(two: dict[str, Run]) -> None:
    assert distance(two["resumed3"].weights, two["zero3"].weights) == 0.0


@pytest.mark.parametrize("name", ["grown2", "grown3", "grown_fsdp2", "shrunk1", "shrunk3", "shrunk_fsdp2"])
def test_another_world_size_goes_on(
    name: str, one: dict[str, Run], two: dict[str, Run], back: dict[str, Run], base: Path
) -> None:
    run = "fsdp2" if name.endswith("fsdp2") else f"zero{name[-1]}"
    rest, whole = (two | back)[name], (one if name.startswith("grown") else two)[run]
    assert rest.error == ""
    assert furthest(rest.loss, whole.loss[HALF:]) < 1e-5
    assert rest.lr == whole.lr[HALF:]
    assert distance(rest.weights, whole.weights) < 1e-5
    assert not list(base.glob("*/*universal*")) and not list(base.glob("*/*_ckpt/*universal*"))  # nothing is left


@pytest.mark.parametrize("stage", STAGES)
def test_export_has_every_weight_once(stage: int, two: dict[str, Run], models: dict[str, str]) -> None:
    mine = two[f"zero{stage}"]
    assert len(mine.names) == len(set(mine.names))
    assert set(mine.names) == set(start(models["tied"]))  # as in the file: no lm_head beside tied embeddings
    assert "lm_head.weight" not in mine.names
    assert set(two["untied_zero3"].names) == set(start(models["untied"])) >= {"lm_head.weight"}


def test_untied_embeddings_are_real_on_every_rank(two: dict[str, Run]) -> None:
    mine, reference = two["untied_zero3"], two["untied_fsdp2"]
    assert furthest(mine.loss, reference.loss) < 1e-5
    assert distance(mine.weights, reference.weights) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_fsdp2_and_publishes_its_fp32_weights(stage: int, two: dict[str, Run], base: Path) -> None:
    from safetensors.torch import load_file

    mine, reference = two[f"bf16_zero{stage}"], two["bf16_fsdp2"]
    assert furthest(mine.loss, reference.loss) < 0.02  # a bf16 mantissa has 8 bits; the losses are near 4.5
    assert all(tensor.dtype == torch.bfloat16 for tensor in mine.weights.values())
    published = load_file(base / f"two/bf16_zero{stage}_ckpt/huggingface/model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in published.values())
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in published.values())
    assert distance({n: t.bfloat16() for n, t in published.items()}, mine.weights) == 0.0


@pytest.mark.parametrize("stage", STAGES)
def test_published_folder_loads_and_holds_the_weights_of_its_step(stage: int, one: dict[str, Run], base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base / f"one/zero{stage}_ckpt/huggingface"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    # It was written at step 3, the export at step 6. From the same point a run of the other stages goes the same way.
    others = [AutoModelForCausalLM.from_pretrained(base / f"one/zero{s}_ckpt/huggingface") for s in STAGES]
    assert all(distance(dict(other.named_parameters()), dict(model.named_parameters())) < 1e-5 for other in others)
    assert distance(dict(model.named_parameters()), one[f"zero{stage}"].weights) > 1e-4


def test_offload_changes_nothing(one: dict[str, Run]) -> None:
    assert furthest(one["offload"].loss, one["fsdp2"].loss) < 1e-5
    assert distance(one["offload"].weights, one["fsdp2"].weights) < 1e-5


def test_an_update_that_is_not_finite_is_skipped(one: dict[str, Run], models: dict[str, str]) -> None:
    assert one["poison"].norm == [float("inf")]
    assert distance(one["poison"].weights, start(models["tied"])) == 0.0


@pytest.mark.parametrize("stage", [2, 3])
def test_reference_computes_what_fsdp2_does(stage: int, two: dict[str, Run]) -> None:
    assert furthest(two[f"reference_zero{stage}"].logprob_sum, two["reference_fsdp2"].logprob_sum) < 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_prmu_trains_as_with_fsdp2(stage: int, two: dict[str, Run], base: Path) -> None:
    from safetensors.torch import load_file

    def rows(name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (base / f"two/{name}/metrics.jsonl").read_text().splitlines()]

    mine, reference = rows(f"prmu_zero{stage}"), rows("prmu_fsdp2")
    for key in ("loss", "grad_norm", "lr"):
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in reference], rel=1e-5, abs=1e-5)
    assert min(row["grad_norm"] for row in reference) > 0.1  # clipped
    weights = [load_file(base / f"two/{name}/model.safetensors") for name in (f"prmu_zero{stage}", "prmu_fsdp2")]
    assert distance(weights[0], weights[1]) < 1e-5
    assert set(weights[0]) == set(weights[1])


def test_refusals_name_file_and_remedy(one: dict[str, Run], two: dict[str, Run]) -> None:
    assert "zero_stage is 2 in the checkpoint and 1 in the recipe" in one["other_stage"].error
    assert "nothing_ckpt is not a complete checkpoint of strategy 'deepspeed'" in one["no_checkpoint"].error
    assert "written by 1 processes, now 2" in two["refused"].error
    assert "universal_checkpoints: true" in two["refused"].error


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"zero_stage": 4}, "use 1, 2 or 3"),
        ({"zero_stage": 2, "offload_params": True}, "offload_params needs zero_stage=3"),
        ({"fsdp_size": 2}, "use 1"),
        ({"ulysses_sequence_parallel_size": 2}, "sequence parallelism"),
        ({"param_offload": True}, "use offload_params"),
    ],
)
def test_settings_that_zero_cannot_honour_are_refused(wrong: dict[str, Any], message: str) -> None:
    from tagpr_rl.backend.deepspeed.engine import DeepSpeedEngineConfig

    with pytest.raises(ValueError, match=message):
        DeepSpeedEngineConfig(**wrong)


def test_deepspeed_would_still_compile_its_collectives() -> None:
    """The patch no_shared_memory_op is needed as long as DeepSpeed offers the op on a CPU with a compiler."""
    code = "import deepspeed; print(int(deepspeed.ops.__compatible_ops__['deepspeed_shm_comm']))"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-1] == "1"
