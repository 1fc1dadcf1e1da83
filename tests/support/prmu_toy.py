"""A toy preference task and a toy backbone for PRMU's tests: each user likes one colour, which the items name."""

from __future__ import annotations

import random
from pathlib import Path

from tagpr_rl.types import PairRow

COLOURS = ("red", "green", "blue", "black", "white", "pink", "brown", "grey")
WORDS = (*COLOURS, "i", "like", "a", "hat", "which", "take", "the", "one", "coat", "scarf")


def toy_pairs(users: int = 48, per_user: int = 3, seed: int = 0) -> list[PairRow]:
    """`chosen` names the user's colour, `rejected` the colour of another user."""
    rng = random.Random(seed)
    liked = {f"u{i}": COLOURS[i % len(COLOURS)] for i in range(users)}
    rows = []
    for user, colour in liked.items():
        for k in range(per_user):
            other = rng.choice([name for name, c in liked.items() if c != colour])
            things = rng.sample(("hat", "coat", "scarf"), 2)
            rows.append(
                PairRow(
                    record_id=f"{user}-{k}",
                    task="LaMP_2",
                    user_id=user,
                    other_user_id=other,
                    question=f"which {things[0]}",
                    profile_texts=tuple(f"i like a {colour} {thing}" for thing in things),
                    chosen=f"take the {colour} one",
                    rejected=f"take the {liked[other]} one",
                    kind="cross_profile",
                )
            )
    return rows


def toy_backbone(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    """A random Qwen3 and a word-level tokenizer, saved as an ordinary Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {word: i for i, word in enumerate(("<pad>", "<eos>", "<unk>", *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
                num_key_value_heads=2, head_dim=hidden // 2, intermediate_size=2 * hidden,
                tie_word_embeddings=True, initializer_range=0.1, max_position_embeddings=128,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
