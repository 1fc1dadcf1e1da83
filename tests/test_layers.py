"""Guards who imports whom. The table is the architecture; the first wrong arrow fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagpr_rl.config import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tagpr_rl"

# Unit of tagpr_rl -> units it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "paths": {"types"},
    "closed": set(),
    "keep_blocks": {"closed"},
    "endpoints": {"closed"},
    "data_blocks": {"closed"},
    "stage_base": {"closed"},
    "stage_rules": {"closed"},
    "monitor_blocks": {"closed"},
    "grpo_blocks": {"closed", "stage_base", "stage_rules", "monitor_blocks"},
    "blocks": {"types", "closed", "keep_blocks", "endpoints", "stage_base", "grpo_blocks"},
    "placement": {"types", "closed", "blocks", "stage_base", "grpo_blocks"},
    "cluster_blocks": {"closed"},
    "config": {
        "types",
        "paths",
        "blocks",
        "placement",
        "cluster_blocks",
        "keep_blocks",
        "endpoints",
        "data_blocks",
        "stage_base",
        "grpo_blocks",
        "stage_rules",
        "closed",
    },
    "tags": {"types", "paths"},
    "data": {"types", "paths", "tags"},
    "reward": {"types", "paths", "tags"},
    "monitor": {"types", "paths", "tags", "reward", "monitor_blocks"},
    "chains": {"types", "paths", "tags", "data", "reward", "endpoints"},
    "eval": {"types", "paths", "tags", "data", "reward"},
    "model": {"types", "paths", "tags", "data"},
    "prmu": {"types", "paths", "tags", "data"},
    "report": {"types", "paths", "config", "tags", "data", "eval"},
    "runstate": {"types", "paths", "config"},
    "checkpoints": {"types", "paths", "runstate"},
    "resume": {"types", "paths", "config", "runstate", "checkpoints"},
    "mirror": {"types", "paths", "config", "runstate", "checkpoints"},
    "runlog": {"types", "paths", "config"},
    "stop": {"types", "stage_rules"},
    "sweep": {"types", "paths", "config", "closed", "runstate"},
    "sweep_cli": {"types", "paths", "runstate", "eval", "sweep", "stages"},
    "faithful_cli": {"types", "paths", "runstate", "stages"},
    "budget": {"types", "paths", "placement", "config"},
    "plan": {"types", "paths", "config", "runstate", "budget"},
    "deploy": {"types", "config"},
    "render": {"types", "paths", "config", "plan", "deploy"},
    "lamp_commands": {"types", "paths", "tags", "data", "eval", "model"},
    "replay": {"types", "paths", "config", "tags", "reward", "runstate"},
    "prmu_cli": {"types", "paths", "runstate", "report"},
    "compare_cli": {"types", "paths", "runstate", "report"},
    "view_cli": {"types", "paths", "config", "runstate", "tags", "monitor"},
    "walk": {"types", "paths", "config", "tags", "data", "reward", "chains", "eval", "report"},
}
_COMMANDS = {"plan", "walk", "budget", "render", "lamp_commands", "replay"} | {
    name for name in MAY_IMPORT if name.endswith("_cli")
}
MAY_IMPORT["backend"] = set(MAY_IMPORT) - _COMMANDS
MAY_IMPORT["stages"] = set(MAY_IMPORT) - _COMMANDS
MAY_IMPORT["chains_cli"] = {"types", "paths", "config", "runstate", "tags", "chains", "report", "stages"}
MAY_IMPORT["launch"] = set(MAY_IMPORT)

# Outside package -> units that may import it.
ONLY_IN: dict[str, set[str]] = {
    **{name: {"backend"} for name in ("verl", "vllm", "ray", "deepspeed", "tensordict", "transfer_queue")},
    **{name: {"prmu", "model", "backend"} for name in ("torch", "safetensors", "transformers", "tokenizers")},
}
# These may also be imported inside a function anywhere (a tokenizer where a stage needs one).
LAZY = {"transformers", "tokenizers"}

HEAVY = ("torch", "ray", "vllm", "verl", "deepspeed", "transformers")
PURE = set(MAY_IMPORT) - {"prmu", "model", "backend", "stages"}
PURE_IN_BACKEND = (
    "tagpr_rl.backend",
    "tagpr_rl.backend.coalesce",
    "tagpr_rl.backend.deepspeed.zero",
    "tagpr_rl.backend.settings",
    "tagpr_rl.backend.tracking",
    "tagpr_rl.backend.verl_config",
    "tagpr_rl.backend.wandb_view",
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


def imported(source: str, package: str) -> Iterator[tuple[str, bool, int]]:
    """(absolute module name, inside a function, line) of every import statement in `source`.

    `package` is the dotted package the source lives in; relative imports are resolved against it.
    """
    tree = ast.parse(source)
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, lazy, node.lineno
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield module, lazy, node.lineno
            if module == "tagpr_rl":  # `from tagpr_rl import data` imports a unit, too
                for name in node.names:
                    if not name.name.startswith("_"):  # __version__ is no unit
                        yield f"tagpr_rl.{name.name}", lazy, node.lineno


def wrong_arrows(unit: str, source: str, package: str = "tagpr_rl") -> list[str]:
    """Imports in `source`, a file of `unit`, that the two tables do not allow."""
    found = []
    for module, lazy, line in imported(source, package):
        top, _, rest = module.partition(".")
        if top == "tagpr_rl":
            other = rest.partition(".")[0]
            if other and other != unit and other not in MAY_IMPORT[unit]:
                found.append(f"line {line}: {unit} may not import {other}")
        elif top in ONLY_IN and unit not in ONLY_IN[top] and not (lazy and top in LAZY):
            found.append(f"line {line}: {unit} may not import {top}")
    return found


def sources() -> list[tuple[str, str, Path]]:
    """(unit, dotted package, file) of all our code."""
    found = [("launch", "", ROOT / "launch.py")]
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            package = ("tagpr_rl", *parts[:-1])
            found.append((parts[0], ".".join(package), path))
    return found


SOURCES = sources()
IDS = [str(path.relative_to(ROOT)) for _, _, path in SOURCES]


@pytest.mark.parametrize("unit, package, path", SOURCES, ids=IDS)
def test_imports_run_one_way(unit: str, package: str, path: Path) -> None:
    assert unit in MAY_IMPORT, f"{path} belongs to no unit of the table in this file; add it"
    assert wrong_arrows(unit, path.read_text(encoding="utf-8"), package) == []


def test_the_table_has_no_cycle() -> None:
    left = {unit: set(others) for unit, others in MAY_IMPORT.items()}
    while left:
        free = {unit for unit, others in left.items() if not others & set(left)}
        assert free, f"cycle among {sorted(left)}"
        left = {unit: others for unit, others in left.items() if unit not in free}


@pytest.mark.parametrize(
    "unit, source, package",
    [
        ("types", "from tagpr_rl.paths import RunDir", "tagpr_rl"),
        ("reward", "def f():\n    from tagpr_rl.prmu.score import Scorer", "tagpr_rl.reward"),
        ("data", "from tagpr_rl import reward", "tagpr_rl.data"),
        ("data", "from ..reward import rubric", "tagpr_rl.data"),
        ("data", "from .. import reward", "tagpr_rl.data"),
        ("eval", "import torch.nn", "tagpr_rl.eval"),
        ("stages", "def f():\n    import ray", "tagpr_rl.stages"),
        ("prmu", "from vllm import LLM", "tagpr_rl.prmu"),
        ("data", "import transformers", "tagpr_rl.data"),
        ("launch", "import verl", ""),
        ("backend", "import tagpr_rl.walk", "tagpr_rl.backend"),
    ],
)
def test_a_wrong_arrow_is_seen(unit: str, source: str, package: str) -> None:
    assert len(wrong_arrows(unit, source, package)) == 1


@pytest.mark.parametrize(
    "unit, source, package",
    [
        ("data", "from tagpr_rl.tags.schema import TagSchema\nfrom .lamp import load_lamp", "tagpr_rl.data"),
        ("backend", "import verl, vllm, ray, deepspeed, torch", "tagpr_rl.backend"),
        ("data", "def f():\n    from transformers import AutoTokenizer", "tagpr_rl.data"),
        ("prmu", "import torch", "tagpr_rl.prmu"),
    ],
)
def test_a_right_arrow_is_let_through(unit: str, source: str, package: str) -> None:
    assert wrong_arrows(unit, source, package) == []


def test_pure_code_loads_nothing_heavy() -> None:
    """Import every module that must run on any machine, in a new process, and look at what was loaded."""
    names = ["launch", *(name for name in PURE_IN_BACKEND if (ROOT / f"{name.replace('.', '/')}.py").exists())]
    for unit, package, path in SOURCES:
        if unit in PURE and unit != "launch":
            names.append(package if path.stem == "__init__" else f"{package}.{path.stem}")
    code = (
        f"import sys, importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("path", [path for _, _, path in SOURCES], ids=IDS)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", [path for _, _, path in SOURCES], ids=IDS)
def test_the_first_line_says_the_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.strip() == "" or ast.get_docstring(ast.parse(text)), "the file has no docstring"


def test_the_readme_names_every_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("<!-- files -->") : text.index("<!-- /files -->")]
    missing = [
        str(path.relative_to(ROOT)) for _, _, path in SOURCES if path.name != "__init__.py" and path.name not in tree
    ]
    assert missing == []


RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "sweeps")  # test_sweep.py


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).stages


def test_there_are_recipes() -> None:
    assert RECIPES
