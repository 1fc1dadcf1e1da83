"""The folder of a run: the only file that knows its layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.config import Recipe


@dataclass(frozen=True, slots=True)
class StageDir:
    """Paths inside one stage's folder."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the stage was made from. It is written last, so a folder without it is not finished."""
        return self.root / "manifest.json"

    @property
    def hf(self) -> Path:
        """Published Hugging Face weights and tokenizer."""
        return self.root / "hf"

    @property
    def checkpoints(self) -> Path:
        """Step checkpoints (`global_step_*`) of a training stage, each with a manifest of its hashes."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per training step."""
        return self.root / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """One JSONL file per step: prompt, response, every reward component."""
        return self.root / "rollouts"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run: `runs/<name>/`."""

    root: Path

    @property
    def resolved(self) -> Path:
        """The recipe after `extends` and overrides, as JSON."""
        return self.root / "resolved.json"

    @property
    def environment(self) -> Path:
        """Versions of the packages, the machine, and the commit of the code."""
        return self.root / "environment.json"

    @property
    def ray_logs(self) -> Path:
        """Logs of the run's own Ray cluster, if it ended with an error."""
        return self.root / "ray_logs"

    @property
    def tracking(self) -> Path:
        """The run's id at its trackers (W&B)."""
        return self.root / "tracking.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that works on the run."""
        return self.root / ".lock"

    @property
    def report_json(self) -> Path:
        """Every number of the report."""
        return self.root / "report.json"

    @property
    def report_html(self) -> Path:
        """The report as one page that loads nothing."""
        return self.root / "report.html"

    @property
    def prmu_eval(self) -> Path:
        """What `tagpr study prmu` measured: `<stage>.json`, `<stage>.html`, and the responses it ranked."""
        return self.root / "prmu_eval"

    def stage(self, index: int, name: str) -> StageDir:
        """Folder of the `index`-th stage (from 0): `010_<name>`, `020_<name>`, ..."""
        return StageDir(self.root / f"{(index + 1) * 10:03d}_{name}")


def stage_dir(recipe: Recipe, run: RunDir, name: str) -> StageDir:
    """Folder of the stage called `name`; its number is its place in the recipe."""
    return run.stage(list(recipe.stages).index(name), name)


def tokens_file(rollouts: Path, step: int) -> Path:
    """The file of a step's token ids and log-probabilities in a stage's `rollouts`."""
    return rollouts / f"step_{step:04d}.parquet"
