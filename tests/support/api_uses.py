"""What the project's files use of other packages, read from their syntax: names, calls, overridden methods.

Nothing is imported, so that a package which is not installed here can be compared with as well (`gpu_api.py`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("vllm", "transformers", "torch")
"""The packages whose version differs between requirements/cpu.lock and gpu.lock, and that the project calls."""

OBJECTS: dict[tuple[str, str], str | tuple[str, ...]] = {
    ("backend/rollout/generate.py", "self.llm"): "vllm.LLM",
    ("backend/rollout/generate.py", "output"): "vllm.outputs.RequestOutput",
    ("backend/rollout/generate.py", "output.outputs[0]"): "vllm.outputs.CompletionOutput",
    ("backend/rollout/generate.py", "out"): "vllm.outputs.CompletionOutput",
    ("backend/rollout/generate.py", "AutoConfig.from_pretrained(folder)"): "transformers.PretrainedConfig",
    ("backend/rollout/vllm_worker.py", "current_platform"): "vllm.platforms.interface.Platform",
    ("backend/rollout/vllm_worker.py", "self"): "vllm.v1.worker.gpu_worker.Worker",
    # vLLM 0.24.0 has two model runners and chooses by the model's architecture (config/vllm.py:use_v2_model_runner).
    ("backend/rollout/vllm_worker.py", "self.model_runner"): (
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner",
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
    ),
    ("backend/rollout/vllm_worker.py", "self.model_runner.vllm_config"): "vllm.config.VllmConfig",
    (
        "backend/rollout/vllm_worker.py",
        "self.model_runner.lora_manager._adapter_manager",
    ): "vllm.lora.model_manager.LoRAModelManager",
    ("backend/serving/reasoning_parser.py", "self"): "vllm.reasoning.ReasoningParser",
}
"""(file, expression) -> its class, or its possible classes: what the syntax does not tell."""

KEYWORDS = {
    ("backend/rollout/generate.py", "engine_options"): "vllm.engine.arg_utils.EngineArgs",
    ("backend/rollout/generate.py", "responses"): "vllm.SamplingParams",
    ("backend/rollout/offline.py", "_start"): "vllm.engine.arg_utils.EngineArgs",
    ("backend/rollout/offline.py", "_sampling"): "vllm.SamplingParams",
    ("backend/rollout/server.py", "generate"): "vllm.SamplingParams",
}
"""(file, function) -> the callable that gets the keys of the function's dictionaries as keywords."""

NO_KEYWORDS = {"json_schema"}
"""Keys of those dictionaries that the project takes out again (`Generator.answer`)."""

WORKER = "vllm.v1.worker.gpu_worker.Worker"
EXTENSION = "TagprWorkerExtension"
"""vLLM adds the extension to its worker, and refuses one with a name of the worker (v1/worker/worker_base.py:266)."""

ENGINE_KEYS = "engine_kwargs.vllm."
"""verl passes the keys below it to vLLM's engine (`backend/trainer/overrides.py`)."""


@dataclass(frozen=True)
class Call:
    """How something is called. `whole` = false: more arguments may come from `*a`, `**k` or elsewhere."""

    positional: int
    keywords: tuple[str, ...]
    whole: bool


@dataclass(frozen=True)
class Use:
    """A dotted name of a package at a place; with a call if it is called there."""

    name: str
    where: str
    call: Call | None = None


@dataclass
class Override:
    """A class of the project below a class of a package, with the signatures of its methods."""

    base: str
    where: str
    methods: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Uses:
    """Everything that was found."""

    names: list[Use] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    extensions: list[tuple[str, str]] = field(default_factory=list)
    """(method of EXTENSION, its place)."""


def uses_of(root: Path, files: list[Path] | None = None) -> Uses:
    """The uses in the package folder `root`, or in the given files of it."""
    found = Uses()
    for path in files or sorted(root.rglob("*.py")):
        _file(path, path.relative_to(root).as_posix(), found)
    return found


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> list[str]:
    """Parameters as text: "a", "b=" with a default, "/", "*", "*args", "**options"; without `self` of a method."""
    args, marks = function.args, []
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    for index, arg in enumerate(positional):
        marks.append(arg.arg + ("=" if index >= first_default else ""))
        if args.posonlyargs and index == len(args.posonlyargs) - 1:
            marks.append("/")
    if args.vararg:
        marks.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs:
        marks.append("*")
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        marks.append(arg.arg + ("" if default is None else "="))
    if args.kwarg:
        marks.append(f"**{args.kwarg.arg}")
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    return marks[1:] if method and not static else marks


def _imports(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted name, of the imports from PACKAGES anywhere in a file."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.split(".")[0]
                if package in PACKAGES:
                    names[alias.asname or package] = alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom) and not node.level and str(node.module).split(".")[0] in PACKAGES:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _file(path: Path, name: str, found: Uses) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = _imports(tree)
    objects = {expression: target for (file, expression), target in OBJECTS.items() if file == name}
    found.names += [Use(dotted, f"{name}: import") for dotted in imported.values()]

    def dotted_of(node: ast.expr) -> tuple[str, ...]:
        if (target := objects.get(ast.unparse(node))) is not None:
            return (target,) if isinstance(target, str) else target
        if isinstance(node, ast.Name):
            return (imported[node.id],) if node.id in imported else ()
        if isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) == "self" and _defines(tree, node.attr)
            return () if own else tuple(f"{inner}.{node.attr}" for inner in dotted_of(node.value))
        return ()

    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            call = called.get(id(node))
            how = _call(call) if call is not None else None
            found.names += [Use(dotted, f"{name}:{node.lineno}", how) for dotted in dotted_of(node)]
        elif isinstance(node, ast.ClassDef):
            if node.name == EXTENSION:
                own = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("__")]
                found.extensions += [(method.name, f"{name}:{method.lineno}") for method in own]
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
            signatures = {m.name: signature(m, method=True) for m in methods}
            bases = [dotted for base in node.bases for dotted in dotted_of(base)]
            found.overrides += [Override(base, f"{name}:{node.lineno}", signatures) for base in bases]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (name, node.name) in KEYWORDS:
            keys = tuple(key for key in _keys(node) if key not in NO_KEYWORDS)
            found.names.append(Use(KEYWORDS[name, node.name], f"{name}:{node.lineno}", Call(0, keys, whole=False)))
        elif isinstance(node, ast.JoinedStr) and ENGINE_KEYS in (text := ast.unparse(node)):
            key = text.split(ENGINE_KEYS)[1].strip("'\"")
            use = Use("vllm.engine.arg_utils.EngineArgs", f"{name}:{node.lineno}", Call(0, (key,), whole=False))
            found.names.append(use)


def _defines(tree: ast.Module, name: str) -> bool:
    """Whether a class of the file has a method or an attribute of this name itself."""
    return any(
        (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name)
        or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == name)
        for node in ast.walk(tree)
    )


def _call(node: ast.Call) -> Call:
    keywords = tuple(word.arg for word in node.keywords if word.arg is not None)
    starred = any(isinstance(arg, ast.Starred) for arg in node.args) or len(keywords) < len(node.keywords)
    return Call(len(node.args), keywords, not starred)


def _keys(function: ast.AST) -> Iterator[str]:
    """Texts that are keys of a function's dictionaries, in literals or by assignment."""
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            yield from (key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
        elif isinstance(node, ast.Subscript) and isinstance(getattr(node.slice, "value", None), str):
            yield ast.literal_eval(node.slice)
