"""Guards the map of the code: who imports whom, no circles between files, what loads nothing heavy, and sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tagpr_rl.config import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tagpr_rl"

# Package (or file at the root) of tagpr_rl -> what it may import. A new arrow is a decision, not an accident.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "files": set(),
    "documents": {"types"},
    "config": {"types", "files", "documents", "reward"},
    "tags": {"types", "documents"},
    "data": {"types", "files", "config"},
    "run": {"types", "files", "documents", "config", "reward"},
    "reward": {"types", "tags"},
    "model": {"types", "files", "tags"},
    "monitor": {"types", "config", "reward"},
    "prompts": {"types", "files", "config", "tags", "data", "model"},
    "eval": {"types", "files", "tags", "data", "prompts", "reward"},
    "chains": {"types", "files", "config", "tags", "data", "prompts", "reward"},
    "prmu": {"types", "files", "run", "tags", "prompts", "eval"},
    "report": {"types", "files", "config", "run", "tags", "prompts", "reward", "eval"},
    "serve": {"types", "config", "run", "data", "tags", "prompts", "chains", "prmu", "report"},
    "plan": {"types", "config", "run"},
    "preflight": {
        *("types", "files", "config", "run", "tags", "data", "prompts", "reward", "model", "plan", "deploy"),
    },
    "deploy": {"types", "files", "config", "plan"},
    "backend": {
        *(
            "types",
            "files",
            "config",
            "run",
            "tags",
            "prompts",
            "reward",
            "eval",
            "monitor",
            "chains",
            "prmu",
            "deploy",
        ),
    },
    "stages": {
        *("types", "files", "config", "run", "tags", "data", "prompts", "reward", "model", "monitor", "eval"),
        *("chains", "prmu", "report", "backend"),
    },
    "studies": {
        *("types", "files", "config", "run", "tags", "data", "prompts", "reward", "model", "eval", "chains"),
        *("prmu", "report", "backend", "stages"),
    },
    "cli": {
        *("types", "files", "config", "run", "tags", "data", "prompts", "reward", "model", "monitor", "eval"),
        *("chains", "report", "serve", "plan", "preflight", "deploy", "stages", "studies", "backend"),
    },
}
# The same inside backend: a session below, trainers above.
MAY_IMPORT_IN_BACKEND: dict[str, set[str]] = {
    "session": set(),
    "tracking": set(),
    "forward": set(),
    "deepspeed": {"forward"},
    "scoring": {"session", "deepspeed", "tracking"},
    "platform_cpu": {"session", "forward"},
    "rollout": {"session", "scoring", "platform_cpu", "forward"},
    "trainer": {"session", "scoring", "tracking", "rollout", "platform_cpu", "forward"},
}
AT_ROOT = {"__init__", "__main__", "types", "files", "documents"}
"""Files that may stand at the package's root: types, files and documents; the two others are Python's own names."""

# Outside package -> packages that may import it.
ONLY_IN: dict[str, set[str]] = {
    **{name: {"backend"} for name in ("verl", "vllm", "ray", "deepspeed", "tensordict", "transfer_queue")},
    **{name: {"prmu", "model", "backend"} for name in ("torch", "safetensors", "transformers", "tokenizers", "gguf")},
}
# These may also be imported inside a function anywhere (a tokenizer when a stage needs one).
LAZY = {"transformers", "tokenizers"}

HEAVY = ("torch", "ray", "vllm", "verl", "deepspeed", "transformers")
PURE = set(MAY_IMPORT) - {"prmu", "model", "backend", "stages", "studies"}
PURE_IN_BACKEND = (
    "tagpr_rl.backend",
    "tagpr_rl.backend.scoring.coalesce",
    "tagpr_rl.backend.session.machine",
    "tagpr_rl.backend.session.worker_settings",
    "tagpr_rl.backend.tracking.settings",
    "tagpr_rl.backend.tracking.tracker",
    "tagpr_rl.backend.tracking.wandb_view",
    "tagpr_rl.backend.trainer.overrides",
)

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MEDIAN_FILE_LINES = range(100, 201)
P95_FUNCTION_LINES = 35
MAX_FLAT_MODULES = 14
ONE_FILE_EACH = {"config", "cli", "stages"}
"""Packages with a file per block, command or kind of stage: they may be flat, and their files have others' names."""
SAME_NAME = {"metrics"}
"""Modules of sibling packages that share a name: run/metrics.py is the file, eval/metrics.py the benchmark's scores."""
ONE_OWNER = {
    "is no run's folder": "run/open.py",
    "term.weight * term.value(": "reward/components.py",  # the reward's formula
}
"""Text -> the only file of tagpr_rl that may have it."""


def dotted(path: Path) -> str:
    """The module's name: tagpr_rl.reward.rubric; a package's own name for its __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {"launch": ROOT / "launch.py", **MODULES}
IDS = list(SOURCES)


def imports(name: str, source: str, *, package: bool = False) -> Iterator[tuple[str, bool, int]]:
    """(absolute module, inside a function, line) of every import statement; `package`: the source is an __init__."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(outer)
    }
    parents = name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, lazy, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            if module != "tagpr_rl":
                yield module, lazy, node.lineno
            if module.startswith("tagpr_rl"):  # `from tagpr_rl.data import lamp` imports a module, too
                for alias in node.names:
                    below = f"{module}.{alias.name}"
                    if below in MODULES or (module == "tagpr_rl" and not alias.name.startswith("_")):
                        yield below, lazy, node.lineno


def room(module: str) -> str:
    """The package of tagpr_rl that a module belongs to; "" for the root itself."""
    return module.removeprefix("tagpr_rl").removeprefix(".").partition(".")[0]


def backend_room(module: str) -> str:
    """The same inside backend; "" elsewhere and for backend's own __init__."""
    rest = module.removeprefix("tagpr_rl.backend")
    return rest.removeprefix(".").partition(".")[0] if rest != module else ""


def wrong_arrows(name: str, source: str, *, package: bool = False) -> list[str]:
    """Imports of the module `name` that the tables do not allow."""
    own, wrong = room(name), []
    for module, lazy, line in imports(name, source, package=package):
        top = module.partition(".")[0]
        if top == "tagpr_rl":
            other = room(module)
            if other and other != own and other not in MAY_IMPORT[own]:
                wrong.append(f"line {line}: {own} may not import {other}")
            inner, outer = backend_room(name), backend_room(module)
            if inner and outer and inner != outer and outer not in MAY_IMPORT_IN_BACKEND[inner]:
                wrong.append(f"line {line}: backend.{inner} may not import backend.{outer}")
        elif top in ONLY_IN and own not in ONLY_IN[top] and not (lazy and top in LAZY):
            wrong.append(f"line {line}: {own} may not import {top}")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    own = room(name)
    if own in ("", "__main__"):
        return
    assert own in MAY_IMPORT, f"{name} belongs to no package of the table in this file; add it"
    path = MODULES[name]
    assert wrong_arrows(name, path.read_text(encoding="utf-8"), package=path.stem == "__init__") == []


def unordered(arrows: dict[str, set[str]]) -> set[str]:
    """The nodes that cannot be put in order, since they import each other in a circle or import such nodes."""
    left = {node: set(others) & set(arrows) for node, others in arrows.items()}
    while left:
        free = {node for node, others in left.items() if not others & set(left)}
        if not free:
            return set(left)
        left = {node: others for node, others in left.items() if node not in free}
    return set()


def test_the_tables_have_no_circle() -> None:
    assert unordered(MAY_IMPORT) == set()
    assert unordered(MAY_IMPORT_IN_BACKEND) == set()


def test_no_package_may_import_everything() -> None:
    assert all(len(others) < len(MAY_IMPORT) - 1 for others in MAY_IMPORT.values())


def _targets(name: str, path: Path) -> set[str]:
    """The modules of the project that a file imports."""
    source = path.read_text(encoding="utf-8")
    return {module for module, _, _ in imports(name, source, package=path.stem == "__init__")} & set(MODULES)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count."""
    arrows = {name: _targets(name, path) - {name} for name, path in MODULES.items()}
    assert unordered(arrows) == set()


def test_every_arrow_of_the_tables_is_used() -> None:
    """An import by a module's name in a string counts: commands import their work when they run."""
    used: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        strings = set(re.findall(r"[\"']((?:pkg://)?tagpr_rl\.[\w.]+)", path.read_text(encoding="utf-8")))
        for module in _targets(name, path) | {text.removeprefix("pkg://") for text in strings}:
            used.setdefault(room(name), set()).add(room(module))
            used.setdefault(backend_room(name), set()).add(backend_room(module))
    for table in (MAY_IMPORT, MAY_IMPORT_IN_BACKEND):
        unused = {own: others - used.get(own, set()) for own, others in table.items()}
        assert {own: others for own, others in unused.items() if others} == {}


def test_a_circle_is_seen() -> None:
    assert unordered({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "name, source",
    [
        ("tagpr_rl.types", "from tagpr_rl.files import write_json"),
        ("tagpr_rl.reward.rubric", "def f():\n    from tagpr_rl.prmu.serving.score import Scorer"),
        ("tagpr_rl.data.lamp", "from tagpr_rl import reward"),
        ("tagpr_rl.data.lamp", "from ..reward import rubric"),
        ("tagpr_rl.data.lamp", "from .. import reward"),
        ("tagpr_rl.eval.metrics", "import torch.nn"),
        ("tagpr_rl.stages.sft", "def f():\n    import ray"),
        ("tagpr_rl.prmu.model", "from vllm import LLM"),
        ("tagpr_rl.data.lamp", "import transformers"),
        ("tagpr_rl.cli.app", "import verl"),
        ("tagpr_rl.backend.trainer.grpo", "import tagpr_rl.cli.walk"),
        ("tagpr_rl.backend.session.jobs", "from tagpr_rl.backend.trainer import grpo"),
        ("tagpr_rl.backend.scoring.response_scorer", "from tagpr_rl.backend.rollout.generate import LiveModel"),
    ],
)
def test_a_wrong_arrow_is_seen(name: str, source: str) -> None:
    assert len(set(wrong_arrows(name, source))) == 1


@pytest.mark.parametrize(
    "name, source",
    [
        ("tagpr_rl.prompts.rows", "from tagpr_rl.tags.schema import TagSchema\nfrom .tokens import ChatTokenizer"),
        ("tagpr_rl.backend.trainer.grpo", "import verl, vllm, ray, deepspeed, torch"),
        ("tagpr_rl.backend.rollout.generate", "from tagpr_rl.backend.session import ray_session"),
        ("tagpr_rl.data.lamp", "def f():\n    from transformers import AutoTokenizer"),
        ("tagpr_rl.prmu.model", "import torch"),
    ],
)
def test_a_right_arrow_is_let_through(name: str, source: str) -> None:
    assert wrong_arrows(name, source) == []


def loaded_by(names: list[str], watched: tuple[str, ...]) -> list[str]:
    """Which of `watched` a new process has loaded after importing `names`."""
    code = (
        f"import sys, importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        f"print(*[name for name in {watched!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_pure_code_loads_nothing_heavy() -> None:
    """Import every module that must run on any machine, in a new process, and look at what was loaded."""
    names = [*PURE_IN_BACKEND, *(name for name in MODULES if room(name) in PURE)]
    assert loaded_by(names, HEAVY) == []


@pytest.mark.parametrize("name", IDS)
def test_files_and_functions_stay_short(name: str) -> None:
    text = SOURCES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for function, lines in function_lengths(text):
        assert lines <= MAX_FUNCTION_LINES, f"{function} has {lines} lines"


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """(name, number of lines) of every function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_only_types_and_files_stand_at_the_root() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= AT_ROOT


def test_large_packages_have_sub_packages() -> None:
    for folder in {path.parent for path in MODULES.values()} - {PACKAGE / name for name in ONE_FILE_EACH}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= MAX_FLAT_MODULES, f"{folder} has {len(modules)} modules; group them in sub-packages"


def test_sibling_packages_have_no_two_modules_of_one_name() -> None:
    places: dict[tuple[str, str], list[str]] = {}
    for name, path in MODULES.items():
        if path.stem != "__init__" and path.stem not in SAME_NAME and room(name) not in ONE_FILE_EACH:
            places.setdefault((str(path.parent.parent), path.stem), []).append(name)
    assert [names for names in places.values() if len(names) > 1] == []


def test_most_files_are_chapters_and_most_functions_short() -> None:
    texts = [path.read_text(encoding="utf-8") for path in MODULES.values() if path.stem != "__init__"]
    assert int(median(len(text.splitlines()) for text in texts)) in MEDIAN_FILE_LINES
    functions = sorted(lines for text in texts for _, lines in function_lengths(text))
    assert functions[int(0.95 * len(functions))] <= P95_FUNCTION_LINES


@pytest.mark.parametrize("text", ONE_OWNER)
def test_one_file_owns_it(text: str) -> None:
    owners = [path for path in MODULES.values() if text in path.read_text(encoding="utf-8")]
    assert owners == [PACKAGE / ONE_OWNER[text]]


@pytest.mark.parametrize("name", IDS)
def test_the_first_line_says_the_purpose(name: str) -> None:
    text = SOURCES[name].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "the file has no docstring"


def test_unit_tests_mirror_the_packages() -> None:
    """tests/unit/<package>/ holds the tests of tagpr_rl/<package>; bench and cluster have tests of their own."""
    known = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {"bench", "cluster"}
    folder = ROOT / "tests" / "unit"
    assert [path.name for path in folder.glob("*.py")] == []
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"} <= known


RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "sweeps")  # test_sweep.py


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).stages


def test_there_are_recipes() -> None:
    assert RECIPES
