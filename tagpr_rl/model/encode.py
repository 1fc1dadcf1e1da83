"""Dense retrieval: any local Hugging Face encoder, mean-pooled over real tokens, as upstream runs Contriever.

Upstream (`LaMP/prompts/contriever_retriever.py` at 38c9d4d): `truncation=True`, mean of the last hidden state over
the attention mask, dot product, no normalisation. Texts are sorted by length here, so that batches hold little
padding; pooled vectors differ from unbatched ones in the last digits only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagpr_rl.files import sha256_file, sha256_json
from tagpr_rl.model.embeddings import EmbeddingStore, Vectors
from tagpr_rl.types import TagprError

MAX_TOKENS = 512
"""A longer text is cut; an encoder with fewer positions cuts earlier."""


class Encoder:
    """A Hugging Face encoder folder, loaded on first use."""

    def __init__(self, folder: Path, *, batch_size: int = 64, device: str = "cpu") -> None:
        self.folder, self.batch_size, self.device = Path(folder), batch_size, device
        if not (self.folder / "config.json").is_file():
            raise TagprError(f"data.retrieval.encoder={folder}: no Hugging Face model folder (no config.json there)")
        self._loaded: tuple[Any, Any] | None = None

    def identity(self) -> str:
        """Hex SHA-256 of what vectors depend on: weights, configuration, tokenizer and the way of pooling."""
        suffixes = (".json", ".safetensors", ".bin", ".txt", ".model")
        files = {path.name: sha256_file(path) for path in self.folder.iterdir() if path.suffix in suffixes}
        return sha256_json({"files": files, "pooling": "mean", "max_tokens": MAX_TOKENS})

    def store(self, cache: Path) -> EmbeddingStore:
        """The store of this encoder's vectors under the folder `cache`."""
        return EmbeddingStore(Path(cache) / self.identity()[:24], self)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Mean-pooled vectors [N, H] in the order of `texts`."""
        tokenizer, model = self._load()
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        pooled: list[Vectors] = []
        for start in range(0, len(order), self.batch_size):
            batch = [texts[index] for index in order[start : start + self.batch_size]]
            pooled.append(self._pool(tokenizer, model, batch))
        vectors = np.concatenate(pooled)
        result = np.empty_like(vectors)
        result[order] = vectors
        return result

    @torch.inference_mode()
    def _pool(self, tokenizer: Any, model: Any, texts: list[str]) -> Vectors:
        limit = min(
            MAX_TOKENS, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        )
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(self.device)
        hidden_BTH = model(**tokens).last_hidden_state.float()
        mask_BT1 = tokens["attention_mask"].unsqueeze(-1)
        # An empty text may have no token at all: its vector is 0, not 0/0.
        mean_BH = hidden_BTH.masked_fill(mask_BT1 == 0, 0.0).sum(1) / mask_BT1.sum(1).clamp(min=1)
        vectors: Vectors = mean_BH.cpu().numpy()
        return vectors

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.folder)
                model = AutoModel.from_pretrained(self.folder)
            except (OSError, ValueError) as error:
                raise TagprError(f"data.retrieval.encoder={self.folder}: cannot be loaded: {error}") from None
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            self._loaded = tokenizer, model.eval().to(self.device)
        return self._loaded
