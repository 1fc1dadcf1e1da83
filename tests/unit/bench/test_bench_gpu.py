"""bench/gpu.py's parts: cases, figures by hand, losses, engines, and the whole command on a CPU."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load(root: Path, name: str) -> ModuleType:
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "bench")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def gpu(root: Path) -> ModuleType:
    return load(root, "gpu")


@pytest.fixture(scope="module")
def measures(root: Path) -> ModuleType:
    return load(root, "gpu_measures")


@pytest.fixture(scope="module")
def engines(root: Path) -> ModuleType:
    return load(root, "gpu_engines")


@pytest.mark.torch
class TestGpu:
    def test_every_variant_of_every_shape_is_a_case(self, gpu: ModuleType) -> None:
        actual = gpu.cases(["0.6B", "1.7B", "4B"], ["plain", "fsdp2", "zero3"], tiny=False)
        updates = [(case.shape, case.variant, case.checkpointing) for case in actual if case.what == "update"]
        assert updates[:5] == [
            ("0.6B", "plain", True), ("0.6B", "plain", False), ("0.6B", "fsdp2", True), ("0.6B", "fsdp2", False),
            ("0.6B", "zero3", True),
        ]  # fmt: skip
        long = [(case.what, case.shape) for case in actual if case.length == 16_384]
        assert long == [
            ("loss", "0.6B"), ("sft", "0.6B"), ("rl", "0.6B"), ("sft", "1.7B"), ("rl", "1.7B"), ("rl lora", "4B"),
        ]  # fmt: skip
        assert len(updates) == 10 and len(actual) == 6 + 1 + 2 * 4 + 10
        assert set(gpu.ANCHORS) <= set(long)

    def test_flops_of_a_trained_token(self, gpu: ModuleType, measures: ModuleType) -> None:
        """By hand for 0.6B and 16,384 tokens: 596 M parameters; 28 layers x 16 heads x 128 x 8,192 x 4 of attention."""
        shape = measures.NAMES["0.6B"]
        forward = 2 * 596_049_920 + 4 * 28 * 16 * 128 * 8192
        assert measures.update_flops(shape, 16_384, frozen=False) == pytest.approx(3 * forward, rel=1e-3)
        saved = measures.update_flops(shape, 16_384, frozen=False) - measures.update_flops(shape, 16_384, frozen=True)
        assert saved == pytest.approx(2 * 596_049_920, rel=1e-3)
        for what in ("sft", "rl"):  # the published pair of figures gives the same FLOPs a token
            anchor = gpu.ANCHORS[what, "0.6B"]
            assert anchor["mfu"] * 989e12 / anchor["tokens_per_s"] == pytest.approx(3 * forward, rel=0.01)

    def test_gaps_of_log_probabilities(self, root: Path) -> None:
        import torch

        pytest.importorskip("transformers")
        found = load(root, "gpu_logprobs").gaps(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -2.5]]))
        assert found["largest_gap"] == 0.5 and found["mean_gap"] == 0.25
        assert found["largest_probability_gap"] == pytest.approx(0.1353353 - 0.0820850)
        assert found["mean_ratio"] == pytest.approx((1 + 1.6487213) / 2)

    def test_medians_and_mfu(self, measures: ModuleType) -> None:
        actual = measures.figures([9.0, 1.0, 2.0, 4.0, 3.0], tokens=300, flops=6e12, peak=4.0)
        assert (actual["seconds"], actual["fastest"], actual["slowest"], actual["rounds"]) == (3.0, 1.0, 9.0, 5)
        assert (actual["tokens_per_s"], actual["tflops"], actual["mfu"]) == (100.0, 2.0, 0.5)
        assert measures.figures([1.0], 1, 1.0, None)["mfu"] is None

    def test_the_peak_is_the_table_s_or_the_caller_s(self, gpu: ModuleType) -> None:
        assert gpu.peak_tflops("NVIDIA H200", None) == 989.0
        assert gpu.peak_tflops("NVIDIA H200", 700.0) == 700.0
        assert gpu.peak_tflops("Unheard Of", None) is None

    def test_the_loss_is_grpo_s(self, engines: ModuleType) -> None:
        import torch

        class Model:
            def __call__(self, input_ids: Any, logits_to_keep: int) -> Any:
                return argparse.Namespace(logits=torch.zeros(len(input_ids), logits_to_keep, 4))

        ids = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
        old = torch.full((2, 2), -1.3862944)  # log 1/4, what the model says: ratio 1
        assert engines.grpo_loss(Model(), ids, old, torch.tensor([1.0, 3.0])).item() == pytest.approx(-2.0)
        # ratio e: clipped to 1.28 where the advantage is positive, not where it is negative
        low = engines.grpo_loss(Model(), ids, old - 1, torch.tensor([1.0, -1.0])).item()
        assert low == pytest.approx(-(1.28 - 2.7182818) / 2)
        assert engines.sft_loss(Model(), ids).item() == pytest.approx(1.3862944)

    def test_an_update_of_each_engine_changes_the_weights(
        self, gpu: ModuleType, engines: ModuleType, measures: ModuleType
    ) -> None:
        import torch

        ids, advantages = torch.arange(16).view(2, 8), torch.tensor([1.0, -1.0])
        with gpu.process_group("cpu"):
            for name in ("plain", "fsdp2"):
                model = engines.policy(measures.TINY, "cpu", torch.float32, True)
                update = engines.plain_engine(model) if name == "plain" else engines.fsdp2_engine(model, "cpu")
                before = [parameter.detach().clone() for parameter in model.parameters()]
                update(lambda m: engines.grpo_loss(m, ids, torch.full((2, 4), -6.2), advantages), 2)
                after = list(model.parameters())
                assert any(
                    not torch.equal(
                        getattr(a, "full_tensor", lambda a=a: a)(), getattr(b, "full_tensor", lambda b=b: b)()
                    )
                    for a, b in zip(before, after, strict=True)
                )

    def test_one_command_on_a_machine_without_a_gpu(self, root: Path, tmp_path: Path) -> None:
        """From another folder, with this project not installed and without pydantic, as on a bare GPU machine."""
        block = tmp_path / "sitecustomize.py"
        block.write_text(
            "import sys\nfor name in ('pydantic', 'ray', 'verl', 'vllm', 'pyarrow', 'deepspeed'):\n"
            "    sys.modules[name] = None\n"
        )
        words = [str(root / "bench" / "gpu.py"), "--out", str(tmp_path), "--cpu"]
        done = subprocess.run(
            [sys.executable, *words, "--engines", "plain"], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        report = json.loads((tmp_path / "gpu.json").read_text())
        rows = {(row["what"], row["variant"], row["checkpointing"]): row for row in report["rows"]}
        bytes_row, vllm_row = rows.pop(("loss", "bf16", False)), rows.pop(("logprobs", "bf16", False))
        assert [row["status"] for row in rows.values()] == ["measured"] * 9, rows
        assert bytes_row["peak_bytes"] is None and bytes_row["planned_bytes"] == 64 * 512 * (4 + 12)
        assert vllm_row["status"] == "not measured: vLLM is not installed" and len(report["not_measured"]) == 2
        assert report["environment"]["torch"] and report["environment"]["installed"]["vllm"] is None
        assert "tokens/s" in done.stdout and not (tmp_path / "gpu.tmp").exists()

    def test_mistakes_in_the_command_line(self, gpu: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(SystemExit) as error:
            gpu.parse(["--out", str(tmp_path), "--cpu", "--shape", "8B"])
        assert error.value.code == 2
        assert gpu.parse(["--out", str(tmp_path), "--cpu"]).shape == ["tiny"]
