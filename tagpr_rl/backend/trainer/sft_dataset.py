"""verl SFT dataset over rows that are tokenised already: the same token ids as in rollouts.

verl's own dataset applies the chat template to every message again at every access.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset


class TokenizedDataset(Dataset):  # type: ignore[type-arg]
    """Rows of a parquet file with `input_ids` (list of int) and `prompt_length` (int)."""

    def __init__(
        self, parquet_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        rows: list[dict[str, Any]] = []
        for file in files:
            rows += pq.read_table(file, columns=["input_ids", "prompt_length"]).to_pylist()
        self.rows = rows[:max_samples] if max_samples > 0 else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `loss_mask`, each [T]; the loss covers the completion only."""
        row = self.rows[index]
        ids = torch.tensor(row["input_ids"], dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[: row["prompt_length"]] = 0
        return {"input_ids": ids, "position_ids": torch.arange(len(ids)), "loss_mask": mask}
