"""Which models the installed transformers and vLLM know, read from their source: importing them takes half a minute."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

_VLLM = "model_executor/models/registry.py"
_TRANSFORMERS = ("models/auto/auto_mappings.py", "models/auto/configuration_auto.py")


@functools.cache
def generating_architectures() -> frozenset[str]:
    """Architectures with which the installed vLLM writes text; empty if it is not installed or says it otherwise."""
    return frozenset(_keys("vllm", _VLLM, ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")))


@functools.cache
def model_types() -> frozenset[str]:
    """`model_type`s that the installed transformers builds without code from the folder; empty if it is not there."""
    return frozenset(name for file in _TRANSFORMERS for name in _keys("transformers", file, ("CONFIG_MAPPING_NAMES",)))


def _keys(package: str, file: str, names: tuple[str, ...]) -> set[str]:
    """String keys of the dicts assigned to `names`, and of the pairs in an OrderedDict([...])."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return set()
    path = Path(spec.origin).parent / file
    if not path.is_file():
        return set()
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not any(isinstance(target, ast.Name) and target.id in names for target in targets):
            continue
        value = node.value
        if isinstance(value, ast.Dict):
            found |= {key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
        elif isinstance(value, ast.Call):  # OrderedDict([("qwen3", "Qwen3Config"), ...])
            firsts = [part.elts[0] for part in ast.walk(value) if isinstance(part, ast.Tuple) and part.elts]
            found |= {
                first.value for first in firsts if isinstance(first, ast.Constant) and isinstance(first.value, str)
            }
    return found
