"""Nothing takes a model for a Qwen: llama, qwen2, qwen3 and gemma3, tiny and random, through what touches a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_models import FAMILIES, small_model
from made_tokenizers import MADE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tagpr_rl.model.convert import convert  # noqa: E402
from tagpr_rl.model.fit import config_mistakes, examine, read_config, stop_ids  # noqa: E402
from tagpr_rl.model.loading import load_mistakes  # noqa: E402
from tagpr_rl.plan.shapes import shape_of  # noqa: E402
from tagpr_rl.prmu.inputs import Limits  # noqa: E402
from tagpr_rl.prmu.model import PrmuModelConfig, new_model  # noqa: E402
from tagpr_rl.prmu.serving.requests import ScoreRequest  # noqa: E402
from tagpr_rl.prmu.serving.score import Scorer  # noqa: E402
from tagpr_rl.prmu.users.vectors import UserTable  # noqa: E402
from tagpr_rl.prompts.rows import sft_rows  # noqa: E402
from tagpr_rl.prompts.tokens import ChatTokenizer  # noqa: E402
from tagpr_rl.tags.grammar import parse  # noqa: E402
from tagpr_rl.tags.schema import default_schema  # noqa: E402
from tagpr_rl.types import ParseStatus  # noqa: E402

pytestmark = pytest.mark.torch
CHAIN = (
    '<think>\n<examine_examples>item "a"</examine_examples>\n<infer_preference>user likes b</infer_preference>\n'
    "<apply_preference>so b</apply_preference>\n</think>\nb"
)
QUESTION = ({"role": "user", "content": "The user's history is empty.\nThe question:\nwhich\n\none?"},)


@pytest.fixture(scope="module", params=[(name, tied) for name in FAMILIES for tied in (True, False)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and tokenizer; embeddings tied to the output layer or not."""
    name, tied = request.param
    tokenizer = MADE[FAMILIES[name][1]]()
    path: Path = tmp_path_factory.mktemp(f"{name}_{tied}")
    # More rows than tokens, as published models have: transformers reads a qwen2's tokenizer with one token more.
    model = small_model(name, len(tokenizer) + 8, tied=tied)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_saved_weights_are_whole(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        tensors = [(name, "F32", tuple(weights.get_slice(name).get_shape())) for name in weights.keys()]  # noqa: SIM118
    assert load_mistakes(folder, tensors) == []
    assert load_mistakes(folder, tensors[1:]) != []


def test_the_plan_counts_its_parameters_and_the_model_stage_finds_nothing_wrong(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shape = shape_of(folder)
    assert shape is not None and shape.tied == model.config.tie_word_embeddings
    assert shape.parameters == pytest.approx(model.num_parameters(), rel=0.01)  # norms and biases differ
    facts, mistakes = examine(folder, default_schema())
    assert mistakes == [] and facts is not None
    assert config_mistakes(read_config(folder / "config.json"), facts) == []
    assert facts.end_id in stop_ids(folder, facts)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_holds_every_number_rounded_once(folder: Path, tmp_path: Path, dtype: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    facts = convert(folder, tmp_path / dtype, dtype)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / dtype)
    assert facts["parameters"] == model.num_parameters() == exported.num_parameters()  # a tied tensor once
    assert exported.dtype == getattr(torch, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor.to(exported.dtype))


def test_a_chain_is_learned_whole_and_read_back(folder: Path) -> None:
    tokenizer = ChatTokenizer(folder)
    (row,), too_long = sft_rows(tokenizer, [(QUESTION, CHAIN)], 1000)
    ids, start = row["input_ids"], row["prompt_length"]
    assert too_long == 0 and ids[-1] == tokenizer.end
    assert tokenizer.encode("\n\n") != [] and tokenizer.tokenizer.unk_token_id not in ids[1:]
    response = tokenizer.text(ids[:start], ids[start:])
    assert parse(response, default_schema()).status is ParseStatus.OK
    assert response.replace("\n", "") == CHAIN.replace("\n", "")
    assert sft_rows(tokenizer, [(QUESTION, CHAIN)], len(ids) - start - 1) == ([], 1)  # not cut in the middle


def test_prmu_scores_alike_alone_and_in_a_batch(folder: Path, tmp_path: Path) -> None:
    model, encoder = new_model(folder, PrmuModelConfig(heads=4, limits=Limits(200, 4, 40)), UserTable(["u"]))
    model.save_pretrained(tmp_path, encoder.tokenizer)
    scorer = Scorer(tmp_path)
    requests = [
        ScoreRequest("u", ('"a text": b', "c"), "which one?", CHAIN),
        ScoreRequest("w", (), "which other one of them all?", "b"),
    ]
    together = scorer.score(requests)
    alone = [scorer.score([request])[0] for request in requests]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(0 < score < 1 for score in together)


def test_an_adapter_covers_the_linear_layers_and_merges_back(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        before = base(ids).logits
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear"))
    layers = {name.split(".lora_")[0].rsplit(".")[-1] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
        changed = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert not torch.allclose(changed, before, atol=1e-4)
    torch.testing.assert_close(merged, changed, rtol=0, atol=1e-4)


def test_bfloat16_on_the_cpu_is_close(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        exact = torch.log_softmax(model(ids).logits, -1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = torch.log_softmax(model(ids).logits.float(), -1)
    assert float((exact - near).abs().max()) < 0.1
    assert not torch.equal(exact, near)
