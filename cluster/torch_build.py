"""Reads pip's dry-run report on standard input and refuses a torch that is not a CPU build.

    pip install --dry-run --no-deps --report - torch==X | python cluster/torch_build.py

A CUDA build asks for gigabytes of NVIDIA packages, so it is caught before it is downloaded. Exits with 0 or 2.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def cuda_needs(report: dict[str, Any]) -> list[str]:
    """Names of NVIDIA packages that the torch in pip's report requires; empty for a CPU build."""
    needs = [need for item in report.get("install", []) for need in item["metadata"].get("requires_dist") or []]
    return sorted(need.split(";")[0].strip() for need in needs if need.lower().startswith(("nvidia-", "cuda-")))


def main() -> int:
    """0 for a CPU build (or nothing to install), 2 with the remedy for another."""
    needs = cuda_needs(json.load(sys.stdin))
    if not needs:
        return 0
    sys.stderr.write(
        f"the package index offers only a CUDA build of torch here (it requires {needs[0]} and {len(needs) - 1} more); "
        "torch was not installed.\nName an index that has CPU builds: make demo TORCH_INDEX=<its URL>\n"
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
