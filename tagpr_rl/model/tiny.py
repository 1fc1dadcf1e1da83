"""A tiny Qwen3 and its tokenizer, made from a corpus and saved as an ordinary Hugging Face folder.

With few distinct words the tokenizer is word-level: each constant phrase, multi-word label and tag is one token,
so that a prompt with five profile items stays near 100 tokens. With many words it is byte-level BPE.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from tagpr_rl.types import TagprError

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
ROLES = ("system", "user", "assistant")
MIN_HEAD_DIM = 32
"""vLLM's CPU attention has no kernel for narrower heads."""
ROPE_THETA = 300.0
"""Rotary base for contexts of some 100 tokens: with Qwen's 1e6 most of the few dimensions would not turn at all, and
copying from the prompt is learned later (one seed, SFT loss after 1,200 steps: .044, against .075 with 1e4)."""
WORD_LEVEL_LIMIT = 1500
"""Most distinct words for a word-level tokenizer."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

WORD_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' "
    "+ (message['content'] | replace('\n', ' ')) + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
"""Without line breaks: a word-level prompt spends no tokens on them."""

_MARKUP = re.compile(r"</?[a-z_]+>")


@dataclass(frozen=True, slots=True)
class TinyInfo:
    """What `build_tiny` made."""

    kind: str
    """word or bpe"""
    vocab_size: int
    parameters: int


def _pre_tokenizer() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")])


def used_phrases(corpus_texts: Sequence[str], phrases: Iterable[str]) -> tuple[str, ...]:
    """The phrases worth a token, longest first: tags (`<name>`, `</name>`) always, since the model must be able
    to write every tag; others when the corpus holds them and they are not one plain word."""
    kept = set()
    for phrase in phrases:
        text = phrase.strip()
        if _MARKUP.fullmatch(text) or (text and not text.isalnum() and any(text in corpus for corpus in corpus_texts)):
            kept.add(text)
    return tuple(sorted(kept, key=lambda text: (-len(text), text)))


def _added(phrases: Sequence[str]) -> list[AddedToken]:
    """Non-special added tokens (verl decodes with skip_special_tokens=True, which would drop special ones)."""
    return [
        AddedToken(
            text,
            special=False,
            normalized=False,
            single_word=text[0].isalnum() and text[-1].isalnum(),  # "is a title" must not match in "this .."
        )
        for text in phrases
    ]


def _special() -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)]


def _words(corpus_texts: Sequence[str], phrases: Sequence[str]) -> Counter[str]:
    """Word counts of the corpus outside the phrases, split as the word-level tokenizer splits."""
    splitter = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    splitter.add_special_tokens(_special())
    splitter.add_tokens(_added(phrases))
    splitter.pre_tokenizer = _pre_tokenizer()
    skip = {PAD, START, END, *phrases}
    counts: Counter[str] = Counter()
    for text in corpus_texts:
        encoding = splitter.encode(text, add_special_tokens=False)
        pieces = zip(encoding.tokens, encoding.offsets, strict=True)
        counts.update(text[a:b] for token, (a, b) in pieces if token not in skip)
    return counts


def _word_level(words: Iterable[str], phrases: Sequence[str]) -> Tokenizer:
    vocabulary = [UNKNOWN, *sorted({*words, *ROLES})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = _pre_tokenizer()  # no decoder: tokens are joined by single spaces
    tokenizer.add_special_tokens([*_special(), AddedToken(UNKNOWN, special=True, normalized=False)])
    # verl wants "\n" to be exactly one token of a Qwen tokenizer (utils/tokenizer/continuous_token.py:558).
    tokenizer.add_tokens([*_added(phrases), AddedToken("\n", special=False, normalized=False)])
    return tokenizer


def _byte_level(corpus_texts: Sequence[str], phrases: Sequence[str], max_vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    room = max_vocab - len(phrases) - len(_special())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if room < len(alphabet):
        raise TagprError(
            f"model.max_vocab is {max_vocab}: {len(phrases)} phrases, {len(_special())} special tokens and "
            f"{len(alphabet)} bytes need more; raise it or give fewer phrases"
        )
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(corpus_texts, trainer)
    tokenizer.add_special_tokens(_special())
    tokenizer.add_tokens(_added(phrases))
    return tokenizer


def build_tokenizer(
    corpus_texts: Sequence[str], phrases: Iterable[str], max_vocab: int = 4096
) -> tuple[PreTrainedTokenizerFast, str]:
    """A tokenizer for the corpus and its kind, "word" or "bpe".

    `corpus_texts` are raw prompt contents and responses. The same input gives the same ids. Raises TagprError when
    the corpus is empty or `max_vocab` is too small.
    """
    if not any(text.strip() for text in corpus_texts):
        raise TagprError("the corpus for the tiny tokenizer is empty: give prompts and responses")
    kept = used_phrases(corpus_texts, phrases)
    words = _words(corpus_texts, kept)
    small = len(words) <= WORD_LEVEL_LIMIT and len(words) + len(kept) + 8 <= max_vocab
    tokenizer = _word_level(words, kept) if small else _byte_level(corpus_texts, kept, max_vocab)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN if small else None,
        extra_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = WORD_CHAT_TEMPLATE if small else CHAT_TEMPLATE
    return wrapped, "word" if small else "bpe"


def build_tiny(
    folder: Path,
    *,
    corpus_texts: Sequence[str],
    phrases: Iterable[str] = (),
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    ffn: int = 192,
    max_vocab: int = 4096,
    max_positions: int = 2048,
    seed: int = 0,
) -> TinyInfo:
    """Write a randomly initialised Qwen3 (tied embeddings, std .05, fp32) and its tokenizer to `folder`.

    `phrases`: constant texts that become one token each (see `used_phrases`): those of the prompts, the schema's
    tags, the tasks' labels. The model's vocabulary is exactly len(tokenizer), which
    verl requires. The global torch generator is left as it was.
    """
    if hidden % heads or (hidden // heads) % 2:
        raise TagprError(f"model.hidden {hidden} must be heads ({heads}) times an even number")
    tokenizer, kind = build_tokenizer(corpus_texts, phrases, max_vocab)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=max(MIN_HEAD_DIM, hidden // heads),
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    info = {"kind": kind, "vocab_size": len(tokenizer), "parameters": parameters, "seed": seed}
    (folder / "tiny.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return TinyInfo(kind, len(tokenizer), parameters)
