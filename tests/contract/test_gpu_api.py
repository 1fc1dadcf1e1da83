"""The project against vLLM, transformers and torch of requirements/gpu.lock, which are not installed here.

tests/contract/gpu_api.json has the signatures of everything that the project uses of them; `make gpu-api` writes it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from api_uses import Call, uses_of
from gpu_api import TABLE, locked


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return content


def refusal(call: Call, parameters: list[str]) -> str | None:
    """Why a call does not fit the parameters; None if it does."""
    names = [mark for mark in parameters if mark not in ("/", "*")]
    any_positional = any(name.startswith("*") and not name.startswith("**") for name in names)
    any_keyword = any(name.startswith("**") for name in names)
    end = next((index for index, mark in enumerate(parameters) if mark.startswith("*")), len(parameters))
    positional = [mark for mark in parameters[:end] if mark != "/"]
    only_positional = parameters[: parameters.index("/")] if "/" in parameters else []
    if call.positional > len(positional) and not any_positional:
        return f"takes {len(positional)} positional arguments, gets {call.positional}"
    by_name = {name.rstrip("=") for name in names if not name.startswith("*") and name not in only_positional}
    unknown = [word for word in call.keywords if word not in by_name]
    if unknown and not any_keyword:
        return f"has no argument {unknown[0]!r}"
    given = {name.rstrip("=") for name in positional[: call.positional]}
    twice = given & set(call.keywords) & by_name
    if twice:
        return f"gets {min(twice)!r} twice"
    needed = {name for name in names if not name.startswith("*") and not name.endswith("=")}
    lacking = needed - given - set(call.keywords)
    return f"needs {min(lacking)!r}" if call.whole and lacking else None


def unfit(ours: list[str], theirs: list[str]) -> str | None:
    """Why a method cannot stand for the method that it overrides; None if it takes every call of that method."""
    if any(mark.startswith("**") for mark in theirs):
        return None  # a placeholder, as torch.autograd.Function.forward
    end = next((index for index, mark in enumerate(theirs) if mark.startswith("*")), len(theirs))
    positional = [mark.rstrip("=") for mark in theirs[:end] if mark != "/"]
    optional = [mark.rstrip("=") for mark in theirs if mark.endswith("=")]
    keyword = [mark.rstrip("=") for mark in theirs[end:] if not mark.startswith("*")]
    by_name = tuple(keyword if "/" in theirs else positional + keyword)
    needed = tuple(name for name in by_name if name not in optional)
    return refusal(Call(len(positional), tuple(keyword), True), ours) or refusal(Call(0, needed, True), ours)


def problems(package: Path, table: dict[str, Any], files: list[Path] | None = None) -> list[str]:
    """Each use that the table does not bear out, with its place."""
    uses, found = uses_of(package, files), []
    for use in uses.names:
        entry = table["names"].get(use.name, "missing")
        if entry == "missing":
            found.append(f"{use.where}: {use.name} is not in the table; `make gpu-api` looks it up")
        elif use.call is not None and entry is not None:
            reasons = [refusal(use.call, parameters) for parameters in entry]
            if all(reasons):
                found.append(f"{use.where}: {use.name} {reasons[0]}")
    for override in uses.overrides:
        base = table["bases"].get(override.base)
        if base is None:
            found.append(f"{override.where}: {override.base} is not in the table")
            continue
        found += [f"{override.where}: lacks {name}" for name in base["abstract"] if name not in override.methods]
        for name, ours in override.methods.items():
            theirs = base["methods"].get(name, "absent")
            # A public method of a vLLM subclass is there for vLLM to call.
            if theirs == "absent" and override.base.startswith("vllm.") and not name.startswith("_"):
                found.append(f"{override.where}: {override.base} has no {name}")
            elif isinstance(theirs, list) and name != "__init__" and (reason := unfit(ours, theirs[0])) is not None:
                found.append(f"{override.where}: {name} {reason}")
    for method, place in uses.extensions:
        if method in table["worker"]:
            found.append(f"{place}: vLLM's worker has a {method} of its own and refuses the extension")
    return found


def test_the_table_is_of_the_locked_versions(table: dict[str, Any]) -> None:
    assert table["versions"] == locked(), "run `make gpu-api`"


def test_every_use_fits_the_locked_versions(root: Path, table: dict[str, Any]) -> None:
    assert problems(root / "tagpr_rl", table) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("rollout/generate.py", "prompt_token_ids=ids", "prompt_ids=ids", "has no argument 'prompt_ids'"),
        ("rollout/generate.py", "use_tqdm=False", "progress=False", "has no argument 'progress'"),
        ("rollout/generate.py", '"max_num_seqs"', '"max_sequences"', "has no argument 'max_sequences'"),
        ("rollout/generate.py", '"detokenize": False', '"detokenise": False', "has no argument 'detokenise'"),
        ("rollout/generate.py", "out.finish_reason", "out.end_reason", "CompletionOutput.end_reason is not in"),
        ("rollout/server.py", "FINAL_ONLY", "LAST_ONLY", "RequestOutputKind.LAST_ONLY is not in the table"),
        ("rollout/vllm_worker.py", "config.model_config, device)", "config.model_config)", "needs 'target_device'"),
        ("rollout/vllm_worker.py", "def load_folder", "def sleep", "vLLM's worker has a sleep of its own"),
        ("serving/reasoning_parser.py", "delta_text: str,\n", "", "extract_reasoning_streaming takes 5 positional"),
        ("serving/reasoning_parser.py", "def extract_content_ids", "def content_ids", "lacks extract_content_ids"),
        ("serving/reasoning_parser.py", "reasoning=thought", "thought=thought", "has no argument 'thought'"),
    ],
)
def test_a_renamed_name_is_seen(
    root: Path, tmp_path: Path, table: dict[str, Any], file: str, old: str, new: str, expected: str
) -> None:
    source = root / "tagpr_rl" / "backend" / file
    copy = tmp_path / "backend" / file
    copy.parent.mkdir(parents=True)
    shutil.copy(source, copy)
    text = copy.read_text(encoding="utf-8")
    assert old in text
    copy.write_text(text.replace(old, new), encoding="utf-8")
    found = problems(tmp_path, table, [copy])
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("parameters", "call", "expected"),
    [
        (["a", "b="], Call(1, (), True), None),
        (["a", "b="], Call(3, (), True), "takes 2 positional arguments, gets 3"),
        (["a", "*", "b"], Call(1, (), True), "needs 'b'"),
        (["a", "*", "b"], Call(1, (), False), None),
        (["a", "/", "b="], Call(1, ("a",), True), "has no argument 'a'"),
        (["a", "b="], Call(1, ("a",), True), "gets 'a' twice"),
        (["*args", "**options"], Call(7, ("x",), True), None),
    ],
)
def test_calls_are_bound_as_python_binds_them(parameters: list[str], call: Call, expected: str | None) -> None:
    assert refusal(call, parameters) == expected
