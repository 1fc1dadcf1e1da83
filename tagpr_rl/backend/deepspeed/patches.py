"""Import of DeepSpeed with the one patch of it: its shared-memory collectives are not compiled.

tests/contract/test_deepspeed.py has a test that fails once the patch is no longer needed.
"""

from __future__ import annotations

import os
import warnings
from typing import Any


def imported(device: str) -> Any:
    """The module `deepspeed`, made ready for `device` ("cpu" or "cuda")."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    no_shared_memory_op(deepspeed)
    deepspeed.utils.logger.setLevel("WARNING")
    # DeepSpeed 0.19.8 calls collectives that torch 2.13 renamed, and torch warns at every call.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    return deepspeed


def no_shared_memory_op(deepspeed: Any) -> None:
    """Mark the op `deepspeed_shm_comm` as not available, so that collectives go through torch's gloo.

    deepspeed/comm/torch.py:47 compiles it with g++ whenever the CPU accelerator is used and a compiler is found,
    half a minute in every fresh environment; there is no setting for it.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
