"""The `cluster` block of a recipe: machines to render manifests for and to submit runs to."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from tagpr_rl.config.base import Closed, Count, NonNegative, Once, worded

Word = Annotated[str, worded(r"[A-Za-z0-9][A-Za-z0-9._-]*", "one word of letters, digits, `.`, `_` and `-`")]
DnsName = Annotated[str, worded(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a name of small letters, digits and `-`")]


class KubernetesBlock(Closed):
    """What only the KubeRay manifests use."""

    namespace: DnsName = "default"
    """Kubernetes namespace of all objects."""
    storage_claim: DnsName | None = None
    """PersistentVolumeClaim (ReadWriteMany for more than one node) mounted at `cluster.storage`."""
    env_secret: DnsName = "tagpr-env"
    """Secret whose keys are the names in `cluster.env`."""


class SlurmBlock(Closed):
    """What only the Slurm script uses."""

    partition: Word | None = None
    """Partition to submit to; null = Slurm's default."""
    account: Word | None = None
    """Account that is charged; null = Slurm's default."""


class ClusterBlock(Closed):
    """Machines for `tagpr cluster render` and `tagpr cluster submit`. A run on one machine reads nothing of it."""

    image: Annotated[str, worded(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", "a container image's name")] | None = None
    """Container image; null = `tagpr_rl:<device>`, which the rendered Dockerfile builds."""
    node_type: Annotated[str, worded(r"[A-Za-z0-9][A-Za-z0-9._/-]*", "the name of a type of node")] | None = None
    """Instance type (cloud, Kubernetes node label) or constraint (Slurm)."""
    accelerator: Word | None = None
    """Name of the GPU for Slurm's gres and SkyPilot, for example H200."""
    devices_per_node: Count | None = None
    """Devices of a node; null = the largest group that must lie on one (platform, placement)."""
    cpus: Count | None = None
    """Cores of a node; null = what the run's processes reserve (CUDA) or threads * devices (CPU)."""
    memory_gb: Count = 64
    """Memory of a node, in GiB."""
    shm_gb: Count = 16
    """/dev/shm of a container, in GiB: Ray's object store and the weight transfer live there."""
    time_limit_h: Count = 24
    """Hours after which a job is ended."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often an interrupted job starts again; it goes on where the run stopped."""
    storage: Annotated[str, worded(r"/[^\s$\\]*", "an absolute path without spaces")] | None = None
    """Folder for runs: an absolute path, the same shared folder on every node. null = the folder `out` (Slurm only)."""
    setup: tuple[str, ...] = ()
    """Shell commands on every node before the run: load modules, mount the shared folder. Not for pods."""
    env: Annotated[tuple[str, ...], Once] = ()
    """NAMES of environment variables to pass on, never values: WANDB_API_KEY, HF_TOKEN."""
    wait_s: NonNegative = 20.0
    """How long a run on an existing cluster waits for nodes and free devices, at its start and before each stage, until
    it says what is missing. Rendered jobs, whose nodes come up beside the run, wait 300 seconds unless it is set."""
    kubernetes: KubernetesBlock = KubernetesBlock()
    """Settings of the KubeRay manifests alone."""
    slurm: SlurmBlock = SlurmBlock()
    """Settings of the Slurm script alone."""

    @field_validator("env")
    @classmethod
    def _names_only(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                shown = name.partition("=")[0]  # what follows may be a secret
                raise ValueError(f"'{shown}' is given with a value or is no variable's name; give the name alone")
        return names
