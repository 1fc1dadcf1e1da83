"""The identity rows of a sharded table as a torch module, in the place of an embedding. It scores and never trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagpr_rl.prmu.users.table import ShardedUsers


class MappedUsers(nn.Module):
    """Row numbers `[...]` -> rows `[..., D]` fp32 on the numbers' device, read from the table's memory maps.

    It has no parameters: a copy of the model to a device leaves the rows where they are.
    """

    def __init__(self, table: ShardedUsers) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: Tensor) -> Tensor:
        """The rows of users `rows`; zeros for 0."""
        found = torch.from_numpy(self.table.vectors(rows.reshape(-1).cpu().numpy()))
        return found.to(rows.device).reshape(*rows.shape, self.table.dim)
