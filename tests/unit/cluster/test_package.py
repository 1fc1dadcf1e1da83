"""The package as it is installed: what the wheel holds, and that the locks resolve. Downloads nothing large."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UV = shutil.which("uv", path=str(Path(sys.executable).parent))


def test_every_dependency_of_the_extras_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for name, chosen in (("cpu.lock", ("cpu", "train", "s3", "dev", "docs")), ("gpu.lock", ("gpu", "train"))):
        lock = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        locked = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE))
        for wanted in [*project["dependencies"], *(item for extra in chosen for item in extras[extra])]:
            package, version = re.match(r"([\w.-]+)(?:\[.*\])?(?:==(.*))?", wanted).groups()  # type: ignore[union-attr]
            package = re.sub(r"[-_.]+", "-", package).lower()
            if package in ("tagpr-rl", "torch" if name == "cpu.lock" else ""):  # the Makefile installs torch itself
                continue
            assert package in locked, f"{name} has no {package}; `make lock` compiles it"
            assert version in (None, locked[package]), f"{name} has {package}=={locked[package]}, not {version}"


@pytest.mark.slow
def test_the_wheel_holds_recipes_templates_and_locks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert "tagpr = tagpr_rl.cli:main" in entry_points and "verl.plugins" in entry_points
    for folder, pattern in (("recipes", "*.yaml"), ("cluster/templates", "*.j2"), ("requirements", "*.lock")):
        files = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)]
        assert files and {f"tagpr_rl/{file}" for file in files} <= names
    assert "tagpr_rl/report/templates/report.html.j2" in names and "tagpr_rl/py.typed" in names


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="uv is not installed")
def test_the_gpu_lock_resolves() -> None:
    """`make install-gpu` without its downloads: uv reads the metadata of every pinned package alone."""
    target = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.12"]
    lock = ROOT / "requirements" / "gpu.lock"
    result = subprocess.run(
        [str(UV), "pip", "compile", "-q", *target, str(lock)], capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr
    pins = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
    assert set(pins.findall(result.stdout)) == set(pins.findall(lock.read_text(encoding="utf-8")))
