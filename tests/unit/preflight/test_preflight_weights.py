"""Headers and samples of weights against bytes written by hand; positions of stretched embeddings."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagpr_rl.preflight import weights
from tagpr_rl.preflight.folder import most_positions
from tagpr_rl.preflight.known import generating_architectures, model_types
from tagpr_rl.preflight.machine import device_count
from tagpr_rl.preflight.weights import not_finite, tensors
from tagpr_rl.types import TagprError


def written(path: Path, values: np.ndarray[Any, Any], dtype: str, **entry: Any) -> Path:
    """A file with one tensor, by the format's definition."""
    facts = {"dtype": dtype, "shape": [values.size], "data_offsets": [0, values.nbytes], **entry}
    header = json.dumps({"a.weight": facts}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    return path


@pytest.mark.parametrize("at", [0, 1, 499_999, 500_000, 999_999])
@pytest.mark.parametrize(
    "dtype, kind, nan",
    [("F32", "<u4", 0x7FC0_0000), ("F16", "<u2", 0x7E00), ("BF16", "<u2", 0x7FC0), ("BF16", "<u2", 0xFF80)],
)
def test_a_nan_anywhere_in_a_small_model_is_seen(tmp_path: Path, dtype: str, kind: str, nan: int, at: int) -> None:
    bits = np.zeros(1_000_000, dtype=kind)
    path = written(tmp_path / "a.safetensors", bits, dtype)
    assert list(not_finite(tensors(path))) == []
    bits[at] = nan
    assert list(not_finite(tensors(written(path, bits, dtype)))) == ["a.weight"]


def test_of_a_large_model_beginning_middle_and_end_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST_SAMPLED_BYTES", 3 * 400)
    found = {}
    for at in (0, 99, 150, 500, 599, 700, 900, 999):
        bits = np.zeros(1000, dtype="<u4")
        bits[at] = 0x7F80_0000
        found[at] = bool(list(not_finite(tensors(written(tmp_path / "a.safetensors", bits, "F32")))))
    # 100 numbers each from 0, 500 and 900
    assert found == {0: True, 99: True, 150: False, 500: True, 599: True, 700: False, 900: True, 999: True}


def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path) -> None:
    path, bits = tmp_path / "a.safetensors", np.zeros(4, dtype="<u4")
    for wrong, words in (
        ({"shape": [5]}, "shape and bytes"),
        ({"data_offsets": [0, 20]}, "is cut"),
        ({"data_offsets": [0, 12]}, "too many"),
        ({"data_offsets": [16, 0]}, "damaged"),
        ({"data_offsets": "x"}, "damaged"),
    ):
        with pytest.raises(TagprError, match=words):
            tensors(written(path, bits, "F32", **wrong))
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(TagprError, match="not a safetensors file"):
        tensors(path)
    path.write_bytes(b"")
    with pytest.raises(TagprError):
        tensors(path)


def test_positions_are_those_of_the_stretched_embedding() -> None:
    assert most_positions({"max_position_embeddings": 2048}) == 2048
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert most_positions({"max_position_embeddings": 40_960, "rope_scaling": yarn}) == 131_072
    assert (
        most_positions({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
        == 131_072
    )
    assert most_positions({"n_positions": 1024}) == 1024
    assert most_positions({}) is None


def test_the_installed_packages_say_what_they_know() -> None:
    known = generating_architectures()
    if known:  # vLLM is installed
        assert {"Qwen3ForCausalLM", "LlamaForCausalLM"} <= known and "BertModel" not in known
    if types := model_types():
        assert {"qwen3", "llama", "bert"} <= types and "own" not in types


def test_hidden_devices_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [Path(f"/dev/nvidia{i}") for i in range(4)] + [Path("/dev/nvidiactl"), Path("/dev/nvidia-uvm")]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(names))
    for visible, count in (
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0,1", 2),
        ("2,-1,3", 1),
        ("0,1,2,3,4,5", 4),
        ("GPU-a,GPU-b", 2),
    ):
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        assert device_count(environment) == count, visible
