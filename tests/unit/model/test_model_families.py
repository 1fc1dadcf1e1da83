"""Nothing takes a model for a Qwen: llama, qwen2, qwen3 and gemma3, tiny and random, through what touches a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_tokenizers import MADE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tagpr_rl.model.loading import load_mistakes  # noqa: E402
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
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, str]] = {
    "llama": ("LlamaConfig", "llama3", "model.layers.0.self_attn.q_proj.weight"),
    "smollm2": ("LlamaConfig", "smollm2", "model.layers.0.self_attn.q_proj.weight"),
    "qwen2": ("Qwen2Config", "r1_distill", "model.layers.0.self_attn.q_proj.bias"),
    "qwen3": ("Qwen3Config", "qwen3", "model.layers.0.self_attn.q_norm.weight"),
    "gemma3": ("Gemma3TextConfig", "gemma", "model.layers.0.pre_feedforward_layernorm.weight"),
}
"""Family -> its configuration, a tokenizer in its manner, and a tensor that tells it from the others."""
CHAIN = (
    '<think>\n<examine_examples>item "a"</examine_examples>\n<infer_preference>user likes b</infer_preference>\n'
    "<apply_preference>so b</apply_preference>\n</think>\nb"
)
QUESTION = ({"role": "user", "content": "The user's history is empty.\nThe question:\nwhich\n\none?"},)


@pytest.fixture(scope="module", params=[(name, tied) for name in FAMILIES for tied in (True, False)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and tokenizer; embeddings tied to the output layer or not."""
    name, tied = request.param
    config, tokenizer_name, _ = FAMILIES[name]
    tokenizer = MADE[tokenizer_name]()
    path: Path = tmp_path_factory.mktemp(f"{name}_{tied}")
    torch.manual_seed(0)
    made = getattr(transformers, config)(vocab_size=len(tokenizer), tie_word_embeddings=tied, **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(made)
    assert FAMILIES[name][2] in model.state_dict()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_saved_weights_are_whole(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        tensors = [(name, "F32", tuple(weights.get_slice(name).get_shape())) for name in weights.keys()]  # noqa: SIM118
    assert load_mistakes(folder, tensors) == []
    assert load_mistakes(folder, tensors[1:]) != []


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


def test_logits_of_the_loss_alone_are_the_model_s(folder: Path) -> None:
    """The hook of backend.platform_cpu.loss_tokens finds every family's output layer."""
    make: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
    model = make(folder)
    ids = torch.arange(5, 25).reshape(2, 10)
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([3, 7, 2])
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0][rows, columns].unsqueeze(0),)
    )
    with torch.no_grad():
        few = model(ids).logits
        handle.remove()
        every = model(ids).logits
    torch.testing.assert_close(few[0], every[rows, columns], rtol=0, atol=1e-5)
