"""GGUF files: weights and ids as the file has them, by a file written here and an encoder of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex

from tagpr_rl.types import TagprError

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

import numpy as np  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from tagpr_rl.model.gguf import TORTURE, build_tokenizer, convert_gguf  # noqa: E402
from tagpr_rl.model.gguf_header import read_header  # noqa: E402

pytestmark = pytest.mark.torch

TEXTS = (
    TORTURE,
    "the cat sat on the mat, the bat spat 2024 times; it's the cat's 10,000th",
    "the  cat\n\n\nsat\r\n on \t the mat ",
    " leading and trailing ",
    "a<|im_end|>b<|im_start|>user\nthe<|im_end|>",
    "",
)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS: dict[str, list[str]] = {
    "gpt-2": [GPT2_WORDS],
    "smollm": [r"\p{N}", GPT2_WORDS],
}
"""Patterns of the words that are split apart one after another, by `tokenizer.ggml.pre`, as llama.cpp writes them."""


def bytes_to_characters() -> dict[int, str]:
    """GPT-2's character of each byte: printable ones are their own, the others follow from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


def independent_encoder(fields: dict[str, Any]) -> Callable[[str], list[int]]:
    """Text -> ids by the textbook's byte-pair encoding: join the pair of lowest rank until none is left."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    ids = {token: index for index, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    characters = bytes_to_characters()
    patterns = WORDS[fields["tokenizer.ggml.pre"]]

    def words(text: str) -> list[str]:
        pieces = [text]
        for pattern in patterns:
            found = [part for piece in pieces for part in regex.split(f"({pattern})", piece)]
            pieces = [part for part in found if part]
        return pieces

    def merged(word: str) -> list[str]:
        parts = [characters[byte] for byte in word.encode()]
        while True:
            pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(parts))]
            if not pairs or min(pairs)[0] == len(ranks):
                return parts
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    def encode(text: str) -> list[int]:
        result: list[int] = []
        for piece in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
            if piece in special:
                result.append(ids[piece])
            else:
                result += [ids[part] for word in words(piece) for part in merged(word)]
        return result

    return encode


def permuted(weight: Any, heads: int) -> Any:
    """Rows of a query or key matrix in llama.cpp's order of rotary pairs."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, *, split: str = "smollm", leave_out: str = "", kind: str = "gpt2") -> LlamaForCausalLM:
    """A random Llama of 2 layers with a byte-level tokenizer, as a GGUF file of float32."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(CONTROLS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sat on the mat the bat spat it's the that then cats mats"] * 3, trainer)
    model_json = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model_json["vocab"], key=model_json["vocab"].get)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=len(tokens), max_position_embeddings=128, tie_word_embeddings=True
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_string("general.license", "apache-2.0")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROLS else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model_json["merges"]])
    for name, index in {"bos": 1, "eos": 2, "padding": 2, "unknown": 0}.items():
        if name != leave_out:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
    writer.add_chat_template("{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy().astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            array = permuted(array, 4 if "q_proj" in name else 2)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_the_folder_has_the_file_s_weights_ids_and_facts(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf")
    header = read_header(tmp_path / "m.gguf")
    facts = convert_gguf(tmp_path / "m.gguf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    assert header.config() == {key: config[key] for key in header.config()}  # what `plan` checks before the conversion
    assert facts["licence"] == "apache-2.0" and facts["architecture"] == "llama"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer("the cat's 42", return_tensors="pt")["input_ids"]
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(written(ids).logits, model(ids).logits, rtol=0, atol=1e-6)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (CONTROLS[1], CONTROLS[2], CONTROLS[2])
    assert written.config.eos_token_id == written.generation_config.eos_token_id == 2
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False) == (
        "<|im_start|>the<|im_end|>"
    )


@pytest.mark.parametrize("split", WORDS)
def test_ids_equal_those_of_an_independent_encoder(tmp_path: Path, split: str) -> None:
    write_gguf(tmp_path / "m.gguf", split=split)
    header = read_header(tmp_path / "m.gguf")
    tokenizer, encode = build_tokenizer(header), independent_encoder(header.fields)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == encode(text), text
        assert tokenizer.decode(ids) == text


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def no_magic(path: Path) -> None:
    path.write_bytes(b"PK" + path.read_bytes()[2:])


@pytest.mark.parametrize("damage", [cut, no_magic, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    write_gguf(tmp_path / "m.gguf")
    damage(tmp_path / "m.gguf")
    with pytest.raises(TagprError, match=r"m\.gguf.*fetch it again"):
        read_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "llama"}, "only byte-level BPE"),
        ({"split": "deepseek-coder"}, "deepseek-coder"),
        ({"leave_out": "eos"}, "names no end token"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(TagprError, match=words):
        build_tokenizer(read_header(tmp_path / "m.gguf"))
