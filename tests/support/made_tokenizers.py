"""Small real tokenizers and chat templates in the manner of well-known models; all written for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["the user rated two thrillers with five stars, so this one gets a five too", "system user assistant model"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set text = m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if loop.last else '') + text + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
QWEN3_THINKING = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
V31 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|></think>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' + ('<think>' if thinking else '</think>') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}{{ bos_token }}"
    "{% set first = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{{ '<|head|>system<|tail|>\n\nToday Date: ' + date + '\n\n' + first + '<|eot_id|>' }}"
    "{% for m in messages if m.role != 'system' %}"
    "{{ '<|head|>' + m.role + '<|tail|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named Smol<|im_end|>\n' }}{% endif %}"
) + CHATML
MISTRAL = (
    "{{ bos_token }}{% set own = namespace(first='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set own.first = m.content + '\n\n' %}{% elif m.role == 'user' %}"
    "{{ '[INST] ' + own.first + m.content + ' [/INST]' }}{% set own.first = '' %}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(
    template: str | None,
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    *,
    eos: str | None = "<|im_end|>",
    bos: str | None = None,
    pad: str | None = None,
    think: bool | None = False,
    lower: bool = False,
) -> Any:
    """A byte-level tokenizer. `think`: whether `<think>` and `</think>` are special tokens; None = no tokens at all."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if lower:
        core.normalizer = normalizers.Lowercase()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if think is not None:
        core.add_tokens([AddedToken(text, special=think, normalized=False) for text in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


R1_TOKENS = ("<|begin|>", "<|User|>", "<|Assistant|>", "<|end|>")
MADE: dict[str, Any] = {
    "qwen3": lambda: byte_level(QWEN3),
    "qwen3_thinking": lambda: byte_level(QWEN3_THINKING),
    "r1_distill": lambda: byte_level(R1, R1_TOKENS, bos="<|begin|>", eos="<|end|>", pad="<|end|>"),
    "v31": lambda: byte_level(V31, R1_TOKENS, bos="<|begin|>", eos="<|end|>"),
    "gemma": lambda: byte_level(
        GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>", think=None
    ),
    "llama3": lambda: byte_level(
        LLAMA3, ("<|bot|>", "<|end_of_text|>", "<|head|>", "<|tail|>", "<|eot_id|>"), bos="<|bot|>", eos="<|eot_id|>"
    ),
    "smollm2": lambda: byte_level(SMOLLM2, think=None),
    "mistral": lambda: byte_level(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), bos="<s>", eos="</s>", think=None),
}
"""Name of a model family -> maker of a tokenizer in its manner."""
