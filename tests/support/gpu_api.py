"""Write tests/contract/gpu_api.json: what the project uses of vLLM, transformers and torch, as gpu.lock has them.

`make gpu-api` runs it: it downloads the wheels once (370 MB), unpacks their Python files into --cache and reads them.
Nothing of them is imported or installed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from api_uses import PACKAGES, WORKER, signature, uses_of

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "contract" / "gpu_api.json"
PLATFORMS = {"vllm": "manylinux_2_28_x86_64", "transformers": "any", "torch": "macosx_11_0_arm64"}
"""Whose wheel is read. torch's Python files are the same everywhere, and this wheel has no CUDA libraries (80 MB)."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def locked() -> dict[str, str]:
    """Package -> version in requirements/gpu.lock."""
    text = (ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8")
    found = dict(re.findall(r"^([a-z-]+)==(\S+)", text, re.MULTILINE))
    return {package: found[package] for package in PACKAGES}


def fetch(package: str, version: str, folder: Path) -> Path:
    """The folder with a package's Python files; downloads the wheel if the folder is not there."""
    place = folder / f"{package}-{version}"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as wheels:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", wheels]
            wanted = ["--python-version", "3.12", "--platform", PLATFORMS[package], f"{package}=={version}"]
            subprocess.run(command + wanted, check=True)
            unpacked = Path(wheels) / "unpacked"
            with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
                wheel.extractall(unpacked, [name for name in wheel.namelist() if name.endswith((".py", ".pyi"))])
            unpacked.rename(place)
    return place


class Definition:
    """A class, function or value (`nodes`: the overloads of one function), or a module (`nodes` empty)."""

    def __init__(self, module: str, nodes: list[Any]) -> None:
        self.module, self.nodes = module, nodes


class Sources:
    """Unpacked packages in which dotted names are looked up."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.body = cache(self._body)
        self.is_module = cache(lambda name: bool(self._files(name)))

    def _files(self, module: str) -> list[Path]:
        folder = self.folders.get(module.split(".")[0])
        if folder is None:
            return []
        path = folder / module.replace(".", "/")
        names = [path / "__init__.py", path / "__init__.pyi", path.with_suffix(".py"), path.with_suffix(".pyi")]
        return [name for name in names if name.is_file()]

    def _body(self, module: str) -> list[ast.stmt]:
        statements: list[ast.stmt] = []
        waiting = [node for file in self._files(module) for node in ast.parse(file.read_text(encoding="utf-8")).body]
        while waiting:
            node = waiting.pop(0)
            inner = [getattr(node, part, []) for part in ("body", "orelse", "handlers", "finalbody")]
            if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                waiting = [child for part in inner for child in part] + waiting
            else:
                statements.append(node)
        return statements

    def find(self, dotted: str, seen: frozenset[str] = frozenset()) -> Definition | None:
        """The definition of a dotted name; None if there is none."""
        parts = dotted.split(".")
        length = next((n for n in range(len(parts), 0, -1) if self.is_module(".".join(parts[:n]))), 0)
        if not length:
            return None
        found: Definition | None = Definition(".".join(parts[:length]), [])
        for name in parts[length:]:
            if found is None:
                return None
            found = self.member(found, name) if found.nodes else self.top(found.module, name, seen)
        return found

    def top(self, module: str, name: str, seen: frozenset[str] = frozenset()) -> Definition | None:
        """A name at the top of a module, through its imports."""
        if f"{module}:{name}" in seen:
            return None
        seen |= {f"{module}:{name}"}
        own = [node for node in self.body(module) if name in _bound(node)]
        if own:
            own = [node for node in own if isinstance(node, ast.ClassDef)][-1:] or own  # `Class = finished(Class)`
            value = getattr(own[-1], "value", None)
            if isinstance(value, ast.Name) and value.id != name:
                return self.top(module, value.id, seen) or Definition(module, own[-1:])
            return Definition(module, own if all(isinstance(node, Function) for node in own) else own[-1:])
        for node in self.body(module):
            if not isinstance(node, ast.ImportFrom):
                continue
            origin = self._origin(module, node)
            for alias in node.names:
                if alias.name == "*" and self.is_module(origin):
                    found = self.top(origin, name, seen)
                elif (alias.asname or alias.name) == name:
                    found = self.find(f"{origin}.{alias.name}", seen)
                else:
                    continue
                if found is not None:
                    return found
        return Definition(f"{module}.{name}", []) if self.is_module(f"{module}.{name}") else None

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return str(node.module)
        package = any(file.stem == "__init__" for file in self._files(module))
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + (1 if package else 0)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def lineage(self, definition: Definition) -> list[Definition]:
        """A class and its base classes as far as they are in the sources, the nearest first."""
        order, waiting = [], [definition]
        while waiting:
            current = waiting.pop(0)
            if not current.nodes or not isinstance(current.nodes[0], ast.ClassDef) or len(order) > 40:
                continue
            order.append(current)
            for base in current.nodes[0].bases:
                text = ast.unparse(base).split("[")[0]
                head, _, rest = text.partition(".")
                found = self.top(current.module, head)
                for part in rest.split(".") if rest and found else ():
                    found = self.member(found, part) if found.nodes else self.top(found.module, part) if found else None
                if found is not None:
                    waiting.append(found)
        return order

    def member(self, definition: Definition, name: str) -> Definition | None:
        """A method or attribute of a class, its base classes' among them; an annotated value's of its class."""
        node = definition.nodes[-1]
        if isinstance(node, ast.AnnAssign):
            text = re.split(r"[\[|]", ast.unparse(node.annotation).strip("'\""))[0].strip()
            kind = self.find_in(definition.module, text)
            return self.member(kind, name) if kind is not None and kind.nodes else None
        for current in self.lineage(definition):
            body = current.nodes[0].body
            own = [child for child in body if name in _bound(child)]
            if own:
                return Definition(current.module, own)
            for child in ast.walk(current.nodes[0]):
                target = getattr(child, "target", None) or next(iter(getattr(child, "targets", [])), None)
                assigns = isinstance(child, ast.Assign | ast.AnnAssign) and target is not None
                if assigns and ast.unparse(target) == f"self.{name}":
                    return Definition(current.module, [child])
        return None

    def find_in(self, module: str, text: str) -> Definition | None:
        """A dotted name as a module's own code would write it."""
        head, _, rest = text.partition(".")
        found = self.top(module, head)
        for part in rest.split(".") if rest else ():
            if found is None:
                return None
            found = self.member(found, part) if found.nodes else self.top(found.module, part)
        return found

    def signatures(self, definition: Definition, *, method: bool) -> list[list[str]] | None:
        """Signatures of a function's overloads or of a class's constructor; None if the syntax does not tell."""
        first = definition.nodes[0] if definition.nodes else None
        if isinstance(first, Function):
            if any(ast.unparse(d).endswith(("property", "setter")) for d in first.decorator_list):
                return None
            return [signature(node, method=method) for node in definition.nodes if isinstance(node, Function)]
        if not isinstance(first, ast.ClassDef):
            return None
        fields: dict[str, str] = {}
        for current in self.lineage(definition):
            made = [n for n in current.nodes[0].body if isinstance(n, Function) and n.name in ("__init__", "__new__")]
            if made and not fields:
                return [signature(node, method=True) for node in made]
            partial = "TypedDict" in [ast.unparse(base) for base in first.bases]
            for node in current.nodes[0].body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    loose = node.value is not None or "NotRequired" in ast.unparse(node.annotation)
                    fields.setdefault(node.target.id, "=" if loose or partial else "")
        return [["*", *(name + mark for name, mark in fields.items())]] if fields else None


def _bound(node: ast.AST) -> list[str]:
    """Names that a statement defines."""
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [item for target in targets for item in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [target.id for target in flat if isinstance(target, ast.Name)]


def table_of(sources: Sources, versions: dict[str, str]) -> dict[str, Any]:
    """The table: versions; each used name with its signatures (null: no callable); each base class's methods (null: a
    property); the names of vLLM's worker."""
    uses = uses_of(ROOT / "tagpr_rl")
    names: dict[str, Any] = {}
    for use in uses.names:
        found, parent = sources.find(use.name), sources.find(use.name.rpartition(".")[0])
        method = parent is not None and bool(parent.nodes)
        untyped = parent is not None and method and not isinstance(parent.nodes[-1], ast.ClassDef)
        names[use.name] = "missing" if found is None and not untyped else None
        if found is not None:
            names[use.name] = sources.signatures(found, method=method)
    bases: dict[str, Any] = {}
    for override in uses.overrides:
        base = sources.find(override.base)
        methods = bases.setdefault(override.base, {"methods": {}, "abstract": []})
        for name in override.methods:
            found = sources.member(base, name) if base is not None else None
            if found is not None:
                methods["methods"][name] = sources.signatures(found, method=True)
        lineage = sources.lineage(base) if base is not None else []
        nearest: dict[str, Function] = {}  # a base may implement what its own base leaves open
        for node in (node for current in lineage for node in current.nodes[0].body):
            if isinstance(node, Function):
                nearest.setdefault(node.name, node)
        methods["abstract"] = sorted(
            name
            for name, node in nearest.items()
            if any("abstract" in ast.unparse(decorator) for decorator in node.decorator_list)
        )
    worker = sources.find(WORKER)
    own = [node for part in sources.lineage(worker) for node in part.nodes[0].body] if worker is not None else []
    return {
        "versions": versions,
        "names": dict(sorted(names.items())),
        "bases": dict(sorted(bases.items())),
        "worker": sorted({name for node in own for name in _bound(node) if not name.startswith("__")}),
    }


def main() -> int:
    """Write the table; 1 if the sources lack a name that the project uses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "gpu-api", help="where the sources are kept")
    folder = parser.parse_args().cache.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    versions = locked()
    sources = Sources({package: fetch(package, version, folder) for package, version in versions.items()})
    table = table_of(sources, versions)
    lines = json.dumps(table, indent=1)
    TABLE.write_text(re.sub(r"\n\s{3,}(?=\S)|\n\s{2}(?=[\]}])", " ", lines) + "\n", encoding="utf-8")
    missing = [name for name, found in table["names"].items() if found == "missing"]
    print(f"{TABLE.name}: {len(table['names'])} names, {len(table['bases'])} base classes; missing: {missing}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
