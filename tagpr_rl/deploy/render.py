"""A recipe as files for clusters: KubeRay, Slurm, SkyPilot, Docker. The templates are in cluster/templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jinja2

from tagpr_rl.config import Recipe
from tagpr_rl.deploy.need import (
    node_cores,
    node_count,
    node_cpus,
    node_devices,
    run_command,
    shell,
    storage,
    submission_problems,
)
from tagpr_rl.files import replacing, shipped
from tagpr_rl.plan import show as planning
from tagpr_rl.types import TagprError

TEMPLATES = shipped("cluster/templates")
RAY_PORT = 6379
REQUIREMENTS = shipped("requirements")

# Target -> file names it writes; a file's template has the same name and ends in .j2.
FILES: dict[str, tuple[str, ...]] = {
    "kuberay": ("raycluster.yaml", "rayjob.yaml"),
    "slurm": ("slurm.sbatch",),
    "skypilot": ("skypilot.yaml",),
    "docker": ("Dockerfile.{device}", "Dockerfile.{device}.dockerignore"),
}

NODES_WAIT_S = 300
"""How long a rendered job waits for its nodes, unless the recipe says `cluster.wait_s`: they come up beside it."""


def render(recipe: Recipe, target: str, recipe_path: Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """File name -> text for one target.

    Raises TagprError with everything that the recipe lacks for the target; nothing is written here.
    """
    words = [str(recipe_path), *overrides]
    broken = [f"{word!r} has a second line; the files hold the command on one" for word in words if "\n" in word]
    if mistakes := problems(recipe, target, recipe_path) + broken:
        lines = "\n  ".join(mistakes)
        raise TagprError(
            f"recipe {recipe_path} cannot be rendered for {target}, {len(mistakes)} mistake(s):\n  {lines}"
        )
    values = template_values(recipe, target, recipe_path, overrides)
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML
    jinja.filters["comment"] = lambda value: " ".join(str(value).split())  # a second line would be no comment
    names = [name.format(device=recipe.platform.device) for name in FILES[target]]
    return {name: jinja.get_template(_template(name)).render(values) for name in names}


def _template(name: str) -> str:
    return "dockerignore.j2" if name.endswith(".dockerignore") else f"{name}.j2"


def write_files(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write all files or none: each goes to a temporary file first, and all are renamed at the end."""
    with ExitStack() as stack:
        for name, text in files.items():
            stack.enter_context(replacing(folder / name)).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def as_text(files: Mapping[str, str]) -> str:
    """The files as one text for a terminal or a pipe; several are parted by a comment with the file's name."""
    if len(files) == 1:
        return next(iter(files.values()))
    return "".join(f"# ---- {name}\n{text}" for name, text in files.items())


def problems(recipe: Recipe, target: str, recipe_path: Path) -> list[str]:
    """Everything that the recipe lacks for the target, one line each."""
    submission = [] if target == "docker" else submission_problems(recipe, recipe_path, in_place=target == "slurm")
    return submission + planning.problems(recipe) + _target_problems(recipe, target)


def _target_problems(recipe: Recipe, target: str) -> list[str]:
    """What only one target asks for."""
    cluster = recipe.cluster
    if target == "kuberay" and cluster.kubernetes.storage_claim is None:
        return ["cluster.kubernetes.storage_claim: not set; a pod's own files end with it, so name a volume claim"]
    if target == "skypilot" and recipe.platform.device == "cuda" and not (cluster.accelerator or cluster.node_type):
        return ["cluster.accelerator: not set; name the GPU (for example H200), or set cluster.node_type"]
    return []


def object_name(name: str) -> str:
    """A run's name as Kubernetes allows it: at most 40 lower-case letters, digits and -, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return plain if plain[:1].isalpha() else f"run-{plain}".strip("-")


def template_values(recipe: Recipe, target: str, recipe_path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The variables of the templates."""
    platform, cluster = recipe.platform, recipe.cluster
    # The scripts for Slurm and SkyPilot append the address themselves if there are several nodes.
    address = "auto" if target == "kuberay" else None
    command: list[str] = []
    if node_count(recipe) > 1 and "wait_s" not in cluster.model_fields_set:
        overrides = [f"cluster.wait_s={NODES_WAIT_S}", *overrides]
    if target != "docker":
        command = run_command(recipe, recipe_path, overrides, address, in_place=target == "slurm")
    return {
        "recipe": recipe_path.name,
        "name": object_name(recipe.name),
        "device": platform.device,
        "cuda": platform.device == "cuda",
        "nodes": node_count(recipe),
        "devices": node_devices(recipe),
        "ray_cpus": node_cpus(recipe),
        "cores": node_cores(recipe),
        "ray_port": RAY_PORT,
        "ray_version": locked_version("ray", platform.device),
        "cuda_version": locked_version("cuda-toolkit", "cuda"),
        "uv_version": locked_version("uv", "cpu"),
        "cluster": cluster,
        "setup": [line for text in cluster.setup for line in text.splitlines()],
        "image": cluster.image or f"tagpr_rl:{platform.device}",
        "storage": storage(recipe),
        "seconds": cluster.time_limit_h * 3600,
        "command": shell(command),
    }


def locked_version(package: str, device: str) -> str:
    """The version of `package` in the lock file of a device; RuntimeError if it is not there."""
    lock = REQUIREMENTS / ("gpu.lock" if device == "cuda" else "cpu.lock")
    match = re.search(rf"^{re.escape(package)}(?:\[[^\]]*\])?==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{lock} has no version of {package}")
    return match.group(1)
