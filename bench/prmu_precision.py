"""What a number format of PRMU's serving does to its ranking: float32 beside bfloat16 and TF32, on a trained PRMU.

Run: python bench/prmu_precision.py RUN [--responses 256] [--threads 1] [--out FILE]

`RUN` is a run directory whose PRMU is trained and whose guided stage has made rollouts. Scored are `--responses`
of the last steps' responses and as many pairs of PRMU's own. bfloat16 is what a scorer computes in with
`placement.prmu_serving.dtype: bfloat16`. TF32 exists on GPUs alone: here every matrix product rounds its inputs to 10
bits of mantissa and adds in float32, as a tensor core does. Reported are Spearman's rank correlation with float32 over
all responses, the share of orders that changed among responses to the same question (what a GRPO group compares) and
among the pairs, and the mean and largest change of a score in [0, 1].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from prmu_serving import requests_of, stage_folder
from torch.overrides import TorchFunctionMode

from tagpr_rl.files import write_json
from tagpr_rl.prmu.accuracy import own
from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prmu.serving.score import Scorer
from tagpr_rl.prmu.training.preferences import read_pairs

Places = tuple[int, int]
PRODUCTS = (
    F.linear, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.einsum, torch.Tensor.matmul,
    torch.Tensor.__matmul__,
)  # fmt: skip


def rounded(value: Any) -> Any:
    """A float32 tensor with 10 bits of mantissa, to nearest, ties to even; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    bits = bits + 0xFFF + ((bits >> 13) & 1)
    return (bits & ~0x1FFF).view(torch.float32)


class Tf32(TorchFunctionMode):
    """Rounds what goes into a matrix product."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            args = tuple(map(rounded, args))
        return func(*args, **(kwargs or {}))


def ranks(values: Sequence[float]) -> torch.Tensor:
    """Rank of each value; equal values share the mean of theirs."""
    _, places, counts = torch.unique(torch.tensor(values), return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts - 1) / 2)[places]


def changed(reference: Sequence[float], other: Sequence[float], pairs: Sequence[Places]) -> dict[str, float]:
    """Share of the `pairs` whose order differs, among those that `reference` does not tie."""
    orders = [(reference[a] - reference[b], other[a] - other[b]) for a, b in pairs]
    told = [(mine, theirs) for mine, theirs in orders if mine]
    return {"pairs": len(told), "changed": sum(mine * theirs <= 0 for mine, theirs in told) / max(1, len(told))}


def effect(
    reference: Sequence[float], other: Sequence[float], groups: Sequence[Places], own: Sequence[Places]
) -> dict[str, Any]:
    """The figures of one format. The lists are scores in [0, 1]; `groups`, `own`: the places that are compared."""
    differences = [abs(a - b) for a, b in zip(reference, other, strict=True)]
    return {
        "rank_correlation": float(torch.corrcoef(torch.stack([ranks(reference), ranks(other)]))[0, 1]),
        "same_question": changed(reference, other, groups),
        "training_pairs": changed(reference, other, own),
        "accuracy": sum(other[a] > other[b] for a, b in own) / len(own),
        "accuracy_float32": sum(reference[a] > reference[b] for a, b in own) / len(own),
        "mean_change": sum(differences) / len(differences),
        "largest_change": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path, help="a run directory with a trained PRMU and a guided stage")
    parser.add_argument("--responses", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    responses = list(dict.fromkeys(requests_of(options.run, options.responses)))
    pairs = read_pairs(stage_folder(options.run, "prmu") / "pairs.parquet")[: options.responses]
    asked: list[ScoreRequest] = [*responses, *(request for pair in pairs for request in own(pair))]
    by_question: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, request in enumerate(responses):
        by_question[request.user_id, request.question].append(place)
    groups = [pair for places in by_question.values() for pair in combinations(places, 2)]
    first = len(responses)
    compared = [(first + 2 * i, first + 2 * i + 1) for i in range(len(pairs))]
    folder = stage_folder(options.run, "prmu") / "prmu"
    single = Scorer(folder, dtype="float32", max_padded_tokens=2048)
    reference = single.score(asked)
    single.forget()
    with Tf32():
        tf32 = single.score(asked)
    half = Scorer(folder, dtype="bfloat16", max_padded_tokens=2048).score(asked)
    figures = {
        "responses": len(responses),
        "weights": sum(weight.numel() for weight in single.model.parameters()),
        "tf32": effect(reference, tf32, groups, compared),
        "bfloat16": effect(reference, half, groups, compared),
    }
    print(json.dumps(figures, indent=2))
    if options.out:
        write_json(options.out, figures)


if __name__ == "__main__":
    main()
