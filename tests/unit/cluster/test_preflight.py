"""The checks before an install: each problem is named with its remedy, and only then."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "cluster"))

import preflight  # noqa: E402
import torch_build  # noqa: E402


def test_a_good_machine_has_no_problem() -> None:
    assert preflight.system_problem("Linux", "x86_64") is None
    assert preflight.python_problem((3, 11, 7)) is None
    assert preflight.venv_problem(lambda name: True) is None
    assert preflight.disk_problem("/x", 8 * 10**9) is None
    assert preflight.compiler_problem(lambda name: "/usr/bin/clang" if name == "clang" else None) is None
    assert preflight.writable_problem("/x", True) is None


@pytest.mark.parametrize(
    "problem, parts",
    [
        (preflight.system_problem("Darwin", "arm64"), ["Darwin on arm64", "use such a machine"]),
        (preflight.python_problem((3, 12)), ["Python 3.12 is not Python 3.11", "PYTHON="]),
        (preflight.python_problem((2, 7)), ["Python 2.7"]),
        (preflight.venv_problem(lambda name: name != "ensurepip"), ["lacks ensurepip", "python3-venv"]),
        (preflight.disk_problem("/x", 7_900_000_000), ["only 7.9 GB are free at /x", "8 GB are needed"]),
        (preflight.compiler_problem(lambda name: None), ["no C compiler", "gcc"]),
        (preflight.writable_problem("/x", False), ["/x is not writable"]),
    ],
)
def test_each_problem_is_named_with_its_remedy(problem: str | None, parts: list[str]) -> None:
    assert problem is not None
    for part in parts:
        assert part in problem


def test_all_problems_are_listed_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(preflight, "PYTHON", (2, 0))
    monkeypatch.setattr(preflight, "NEED_GB", 10**9)
    monkeypatch.setattr(preflight, "COMPILERS", ("no-such-compiler",))
    assert preflight.main(["--folder", str(ROOT)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n  - ") == 3
    assert "nothing was downloaded" in error


def test_it_runs_as_a_script_without_the_project(tmp_path: Path) -> None:
    script = ROOT / "cluster" / "preflight.py"
    result = subprocess.run(
        [sys.executable, "-I", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 2)
    assert (result.returncode == 2) == ("not ready" in result.stderr)


def report(*needs: str) -> dict[str, Any]:
    return {"install": [{"metadata": {"name": "torch", "requires_dist": list(needs)}}]}


def test_a_cpu_build_of_torch_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (report("filelock", "sympy>=1.13"), {"install": []}, {"install": [{"metadata": {}}]}):
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(value)))
        assert torch_build.main() == 0


def test_a_cuda_build_of_torch_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = report("filelock", 'nvidia-cudnn-cu13==9.1; platform_system == "Linux"', "cuda-bindings<14")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(needs)))
    assert torch_build.main() == 2
    error = capsys.readouterr().err
    assert "TORCH_INDEX=" in error and "cuda-bindings<14 and 1 more" in error
