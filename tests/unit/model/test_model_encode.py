"""The dense encoder against an unbatched computation on a tiny random BERT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tagpr_rl.types import TagprError

pytestmark = pytest.mark.torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "lamp", "a", "blue", "thing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("encoder")
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab=str(path / "vocab.txt"), model_max_length=32).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(path)
    return path


def test_batches_give_the_vectors_of_single_texts(folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from tagpr_rl.model.encode import Encoder

    texts = ["red lamp", "a", "blue thing a red lamp", "", "lamp " * 60]
    vectors = Encoder(folder, batch_size=2)(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(texts, vectors, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state[0]
        assert vector == pytest.approx(hidden.mean(0).numpy(), abs=1e-5)  # one text: no padding
    store = Encoder(folder).store(tmp_path)
    assert store.similarity(texts, "red lamp") == pytest.approx((vectors @ vectors[0]).tolist(), abs=1e-4)
    assert store.encoded == 5
    assert Encoder(folder).store(tmp_path).similarity(texts[:1], "a") == pytest.approx(
        [float(np.dot(vectors[0], vectors[1]))], abs=1e-4
    )


def test_another_encoder_has_another_store(folder: Path, tmp_path: Path) -> None:
    from tagpr_rl.model.encode import Encoder

    before = Encoder(folder).identity()
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + " ")
    assert Encoder(folder).identity() != before
    with pytest.raises(TagprError, match="no Hugging Face model folder"):
        Encoder(tmp_path)
