"""The PRMU actor under Ray: batches of many callers, the scorer's own values, and errors that reach the caller."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("torch")
pytestmark = pytest.mark.stack

import ray  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from tagpr_rl.backend import prmu_actor  # noqa: E402
from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig, new_model  # noqa: E402
from tagpr_rl.prmu.requests import ScoreRequest  # noqa: E402
from tagpr_rl.prmu.score import Scorer  # noqa: E402
from tagpr_rl.prmu.users import UserTable  # noqa: E402
from tagpr_rl.types import TagprError  # noqa: E402

WORDS = ("<pad>", "<eos>", "<unk>", "red", "blue", "hat", "like", "take")
ASKS = [
    ScoreRequest(f"u{i % 7}", ("like red hat", "like blue")[: i % 3], "hat", "take red" + " blue" * (i % 5))
    for i in range(64)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PRMU on a random one-layer Qwen3."""
    root = tmp_path_factory.mktemp("prmu")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    config = Qwen3Config(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(root / "backbone")
    tokenizer.save_pretrained(root / "backbone")
    model, encoder = new_model(root / "backbone", PrmuModelConfig(heads=2), UserTable(["u0", "u1"]))
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(root / "prmu", encoder.tokenizer)
    return root / "prmu"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100 << 20)
    yield
    ray.shutdown()


def test_many_callers_get_the_scorer_s_values_in_few_batches(folder: Path) -> None:
    actor = prmu_actor.start("prmu_many", str(folder), max_wait_ms=20.0)
    ray.get(actor.health.remote())
    got = ray.get([ray.get_actor("prmu_many").score.remote(ask) for ask in ASKS])
    assert got == pytest.approx(Scorer(folder).score(ASKS), abs=1e-5)
    assert len({round(value, 6) for value in got}) > 5
    assert ray.get(actor.score_many.remote(ASKS[:9])) == pytest.approx(got[:9], abs=1e-5)
    health = ray.get(actor.health.remote())
    assert (health["requests"], health["failed"], health["path"]) == (73, 0, str(folder))
    assert health["batches"] <= 16
    ray.kill(actor)


def test_a_bad_request_raises_and_the_others_are_scored(folder: Path) -> None:
    actor = prmu_actor.start("prmu_bad", str(folder))
    bad: Any = replace(ASKS[0], response=None)
    calls = [actor.score.remote(ask) for ask in (ASKS[0], bad, ASKS[1])]
    assert 0 <= ray.get(calls[0]) <= 1
    with pytest.raises(TagprError, match=r"request\.response is None"):
        ray.get(calls[1])
    assert 0 <= ray.get(calls[2]) <= 1
    ray.kill(actor)


def test_nan_is_an_error_not_a_score(folder: Path, tmp_path: Path) -> None:
    model, encoder = PrmuModel.from_pretrained(folder)
    model.head.bias.data.fill_(math.nan)
    model.save_pretrained(tmp_path, encoder.tokenizer)
    actor = prmu_actor.start("prmu_nan", str(tmp_path))
    with pytest.raises(FloatingPointError, match="gave nan for user 'u0'"):
        ray.get(actor.score.remote(ASKS[0]))
    assert ray.get(actor.health.remote())["failed"] == 1
    ray.kill(actor)


def test_the_scorer_s_place_is_the_recipe_s() -> None:
    from tagpr_rl.config import PlacementBlock
    from tagpr_rl.stages.train import scorer_placement

    assert scorer_placement(PlacementBlock()) == {"device": "cpu"}
    assert scorer_placement(PlacementBlock(prmu="shared")) == {"device": "cuda", "num_gpus": 0.0}
    own = PlacementBlock(prmu="dedicated", prmu_devices=0.5)
    assert scorer_placement(own) == {"device": "cuda", "num_gpus": 0.5}
