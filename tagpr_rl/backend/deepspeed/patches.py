"""The one patch of DeepSpeed: its shared-memory collectives are not compiled.

tests/contract/test_deepspeed.py has a test that fails once it is no longer needed.
"""

from __future__ import annotations


def no_shared_memory_op() -> None:
    """Mark the op `deepspeed_shm_comm` as not available, so that collectives go through torch's gloo.

    deepspeed/comm/torch.py:47 compiles it with g++ whenever the CPU accelerator is used and a compiler is found,
    half a minute in every fresh environment; there is no setting for it.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
