"""Converts a GGUF file into a Hugging Face model folder, and compares what came out with the file.

transformers reads the weights. It guesses the tokenizer, and for some files guesses wrong (another end token, another
pre-tokenizer), so the tokenizer is built here from the file's own fields: vocabulary, merges, kinds of tokens, ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from tagpr_rl.model.gguf_header import Header, read_header
from tagpr_rl.types import TagprError

CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens in `tokenizer.ggml.token_type` (gguf.TokenType)."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[str, tuple[str | None, bool, bool]] = {
    # name in tokenizer.ggml.pre -> (pattern of words; None = GPT-2's own, each digit apart, NFC)
    "gpt-2": (None, False, False),
    "default": (None, False, False),
    "smollm": (None, True, False),
    "qwen2": (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST, False, True),
    "llama-bpe": (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST, False, False),
}
"""How each family splits a text into words before the merges (llama.cpp, src/llama-vocab.cpp, names of `pre`)."""

TORTURE = (
    'A user wrote: "it\'s 1,234.50 (or 7%)"\n\n\tNext\r\nline   with  spaces \u00e9\u0301\u00df \u4f60\u597d '
    "\U0001f600\u200d\U0001f525 <think>a_b</think> {}[]\\|~`"
)
"""A text of what tokenizers get wrong: runs of spaces, tabs, line ends, digits, accents, emoji, markup."""
PROBES = ("The capital of France is", "1 2 3 4 5 6")
"""Texts whose log-probabilities the written folder must repeat."""


def build_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """The file's own byte-level BPE tokenizer, with its special tokens and its chat template.

    TagprError if the file has another kind of tokenizer, or splits words in a way that SPLITS does not name.
    """
    kind = header.get("tokenizer.ggml.model")
    split = header.fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLITS:
        raise TagprError(
            f"{header.path}: tokenizer {kind!r}, words split as {split!r}: only byte-level BPE (gpt2) split as one of "
            f"{', '.join(SPLITS)} is read from GGUF; give the model's Hugging Face folder"
        )
    tokens: list[str] = header.get("tokenizer.ggml.tokens")
    tokenizer = _byte_level(tokens, header.get("tokenizer.ggml.merges"), split)
    kinds = header.get("tokenizer.ggml.token_type")
    pairs = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text, kind in pairs if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, kind in pairs if kind == USER_DEFINED])
    if tokenizer.get_vocab_size() != len(tokens):
        raise TagprError(
            f"{header.path}: {len(tokens)} tokens in the file, {tokenizer.get_vocab_size()} different ones"
        )

    def named(key: str) -> str | None:
        index = header.fields.get(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    start, end = named("bos"), named("eos")
    if end is None:
        raise TagprError(f"{header.path}: this GGUF file names no end token (tokenizer.ggml.eos_token_id)")
    if header.fields.get("tokenizer.ggml.add_bos_token") and start is not None:
        beginning = [(start, tokens.index(start))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=beginning)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        unk_token=named("unknown"),
        pad_token=named("padding") or end,
        chat_template=header.fields.get("tokenizer.chat_template"),
        model_max_length=header.fields.get(f"{header.get('general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,
    )


def _byte_level(tokens: list[str], merges: list[str], split: str) -> Tokenizer:
    pattern, digits_apart, nfc = SPLITS[split]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    # Llama 3 takes a word that is a token as it is, even where its merges would not make it.
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=split == "llama-bpe"))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits_apart else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def convert_gguf(source: Path, folder: Path) -> dict[str, Any]:
    """Write the model of `source` to `folder` (new) as float32 safetensors with its tokenizer; what the file says.

    Returns:
        name, licence, architecture and number of parameters: for manifest and cards.

    Raises:
        TagprError: no GGUF file, an architecture that transformers cannot read, a tokenizer that cannot be rebuilt,
            or a folder that does not repeat the file's ids, text or log-probabilities.
    """
    header = read_header(source)
    tokenizer = build_tokenizer(header)
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError) as error:
        architecture = header.fields.get("general.architecture")
        raise TagprError(f"{source}: transformers cannot read architecture {architecture!r} ({error})") from error
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.config.update({**ends, "pad_token_id": tokenizer.pad_token_id})
    model.generation_config = GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check(model, tokenizer, folder)
    return {
        "name": header.fields.get("general.name"),
        "licence": header.fields.get("general.license"),
        "architecture": header.get("general.architecture"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@torch.inference_mode()
def check(model: Any, tokenizer: Any, folder: Path) -> None:
    """Load `folder` and compare ids, round trip and log-probabilities; TagprError names the first difference."""
    again = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TORTURE, add_special_tokens=False)["input_ids"]
    whole = tokenizer.backend_tokenizer.normalizer
    text = whole.normalize_str(TORTURE) if whole is not None else TORTURE
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    if again(TORTURE, add_special_tokens=False)["input_ids"] != ids or again.decode(ids) != text:
        raise TagprError(f"{folder}: the written tokenizer does not give back the text that it was given")
    if any(getattr(again, name) != getattr(tokenizer, name) for name in special):
        raise TagprError(f"{folder}: the written tokenizer has other special tokens than the file")
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for probe in PROBES:
        ids_1T = tokenizer(probe, return_tensors="pt")["input_ids"]
        first, second = (each(ids_1T).logits.log_softmax(-1) for each in (model, written))
        if not first.isfinite().all() or not torch.equal(first, second):
            raise TagprError(f"{folder}: the written weights give other log-probabilities than the file's")
