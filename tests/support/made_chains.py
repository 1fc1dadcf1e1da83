"""A chains stage made by hand, without a teacher: five chains, two rejected ones, three pairs; as files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tagpr_rl.chains.build import RejectedChain
from tagpr_rl.chains.keep import Rejection
from tagpr_rl.chains.storage import write_rejected
from tagpr_rl.config import Recipe, dump_recipe, recipe_from_dict
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir, StageDir, stage_dir
from tagpr_rl.run.manifest import StageFacts, make_manifest, stage_config, write_manifest
from tagpr_rl.run.open import read_resolved

INJECTED = "</script><b>x</b> | a `tick` \x1b[31mred"
"""What a user's history may hold; a kept response cannot hold markup, but a prompt can."""
STAGES: dict[str, Any] = {"data": {"kind": "data"}, "model": {"kind": "model"}, "chains": {"kind": "chains"}}


def response(*steps: tuple[str, str], answer: str) -> str:
    lines = "".join(f"<{tag}>{text}</{tag}>\n" for tag, text in steps)
    return f"<think>\n{lines}</think>\n{answer}"


def chain(record_id: str, task: str, user: str, thing: str, answer: str, *, correct: bool = True) -> dict[str, Any]:
    steps = [
        ("understand_task", f"the question is about {thing}"),
        ("examine_examples", f"the user wrote two {thing}"),
        ("infer_preference", f"the user prefers {thing}"),
        ("apply_preference", f"so {thing} fits"),
    ]
    return {
        "record_id": record_id, "task": task, "user_id": user,
        "messages": [{"role": "user", "content": f"{INJECTED}: which {thing}?"}],
        "response": response(*steps, answer=answer), "answer": answer, "correct": correct, "sample": 0,
    }  # fmt: skip


CHAINS = [
    chain("1", "LaMP_1", "u1", "red cars", "[1]"),
    chain("2", "LaMP_1", "u1", "blue cars", "[2]"),
    chain("3", "LaMP_1", "u2", "tall trees", "[1]"),
    chain("4", "LaMP_2", "u2", "war films", "comedy", correct=False),
    chain("5", "LaMP_2", "u3", "sad films", "fantasy"),
]
PAIRS = [
    {
        "record_id": row["record_id"], "task": row["task"], "user_id": row["user_id"], "other_user_id": other,
        "question": "which?", "profile_texts": ["one", "two"], "chosen": row["response"], "rejected": "<think>",
        "kind": kind,
    }
    for row, other, kind in (
        (CHAINS[0], "u2", "cross_profile"), (CHAINS[4], "u1", "cross_profile"), (CHAINS[4], "", "wrong"),
    )
]  # fmt: skip
REJECTED = (
    RejectedChain("6", "LaMP_1", "u3", 0, Rejection.WRONG_ANSWER, f"one {INJECTED}\ntwo\nthree\nAnswer: [2]"),
    RejectedChain("7", "LaMP_2", "u1", 1, Rejection.NO_ANSWER, "I do not know."),
)
FACTS: dict[str, Any] = {
    "kept": 5,
    "kept_wrong": 1,
    "rejected": {"WRONG_ANSWER": 1, "NO_ANSWER": 1},
    "tags": {"understand_task": 5, "examine_examples": 5, "infer_preference": 5, "apply_preference": 5},
    "steps_per_chain": {"4": 5},
    "kappa": 0.75,
    "pairs": {"cross_profile": 2, "wrong": 1},
}


def recipe(out: Path, **keys: Any) -> Recipe:
    return recipe_from_dict({"name": "r", "out": str(out), "stages": STAGES} | keys, source="x")


def write_files(folder: Path, *, pairs: bool = True) -> None:
    """The stage's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(CHAINS), folder / "chains.parquet")
    pq.write_table(pa.Table.from_pylist(PAIRS if pairs else []), folder / "pairs.parquet")
    write_rejected(folder, REJECTED)
    write_json(folder / "chains.json", FACTS)


def make_run(out: Path, *, finished: bool = True, **keys: Any) -> RunDir:
    """A run's folder with its chains stage."""
    made = recipe(out, **keys)
    run = RunDir(made.out / made.name)
    write_json(run.resolved, dump_recipe(made))
    write_json(run.environment, {"tagpr_rl": "0.1.0", "commit": "c0ffee"})
    folder = chains_folder(run, made)
    write_files(folder.root)
    if finished:
        facts = StageFacts(stage_config(made, "chains"), {})
        manifest = make_manifest(
            folder, "chains", "chains", facts, outputs=sorted(folder.root.iterdir()), started="2026-01-01T00:00:00Z",
            seconds=1.0,
        )  # fmt: skip
        write_manifest(folder, manifest)
    return run


def chains_folder(run: RunDir, made: Recipe | None = None) -> StageDir:
    return stage_dir(made or read_resolved(run), run, "chains")
