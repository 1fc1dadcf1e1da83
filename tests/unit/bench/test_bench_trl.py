"""bench/requirements-trl.txt names what TRL's half imports of this project, so that the documented bench runs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_trl_s_requirements_name_the_packages_of_the_reward() -> None:
    lines = (ROOT / "bench/trl_half.py").read_text(encoding="utf-8").splitlines()
    own = [line for line in lines if line.startswith("from tagpr_rl")]
    assert len(own) == 3
    last = "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    code = "\n".join(["import sys", "before = set(sys.modules)", *own, last])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    distributions = importlib.metadata.packages_distributions()
    needed = {distributions[module][0].lower() for module in done.stdout.split() if module in distributions}
    text = (ROOT / "bench/requirements-trl.txt").read_text(encoding="utf-8")
    named = {line.split()[0].split("==")[0] for line in text.splitlines() if not line.startswith("#")}
    assert "rapidfuzz" in needed and needed - {"tagpr_rl"} <= named
