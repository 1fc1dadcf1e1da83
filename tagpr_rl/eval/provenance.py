"""What a result file says about its origin: data, metrics and their direction, prompt, schema and code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.metrics import CONFIDENCE, RESAMPLES
from tagpr_rl.files import sha256_json
from tagpr_rl.types import MetricResult, Prompt

FORMAT = 1
"""Version of this layout."""

VERSIONS: Mapping[str, str] = {
    "LaMP_1": "citation identification, 2 candidates",
    "LaMP_2": "movie tags, 15 labels (the current LaMP-2; not the news task of its first version)",
    "LaMP_2N": "news categories, 15 labels (LaMP-2 of the benchmark's first version)",
    "LaMP_3": "product ratings, 1 to 5",
    "LaMP_4": "news headlines",
    "LaMP_5": "paper titles",
    "LaMP_6": "e-mail subjects (Avocado)",
    "LaMP_7": "tweet paraphrases",
}


def describe(
    tasks: Iterable[str],
    *,
    split: str,
    setting: str,
    prompt_sha256: str | None,
    schema_sha256: str | None,
    decoding: Mapping[str, Any] | None,
    n: int,
    n_users: int,
) -> dict[str, Any]:
    """The origin of a result of `n` questions by `n_users` people, as JSON values. None = not known."""
    names = list(tasks)
    return {
        "format": FORMAT,
        "task_versions": {task: VERSIONS[task] for task in names},
        "labels": {task: list(TASKS[task].labels) for task in names if TASKS[task].labels},
        "split": split,
        "setting": setting,
        "interval": interval(n, n_users),
        "prompt_sha256": prompt_sha256,
        "schema_sha256": schema_sha256,
        "decoding": dict(decoding) if decoding is not None else None,
        "code": code_version(),
    }


def interval(n: int, n_users: int) -> str:
    """What the intervals of `n` questions by `n_users` people resample."""
    drawn = f"{n_users} users with {n} questions" if n_users < n else f"{n} questions, each counted as a user"
    return f"{CONFIDENCE:.0%} percentile bootstrap over {drawn}, {RESAMPLES} resamples"


def metric_row(metric: MetricResult) -> dict[str, Any]:
    """One metric as JSON values, with its direction."""
    return {**asdict(metric), "direction": "higher is better" if metric.higher_is_better else "lower is better"}


def prompts_sha256(prompts: Iterable[Prompt]) -> str:
    """One hash of all prompts, in their order."""
    return sha256_json([[dict(message) for message in prompt.messages] for prompt in prompts])


def code_version() -> dict[str, Any]:
    """{"commit", "uncommitted_changes"} of the checkout that this code runs from; both None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "uncommitted_changes": bool(_git("status", "--porcelain")) if commit else None}


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
