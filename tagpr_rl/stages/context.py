"""The input and the result of every stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tagpr_rl.config import Recipe
from tagpr_rl.config.recipe import nearest
from tagpr_rl.files import write_json
from tagpr_rl.prompts.dataset import LAMP, Dataset
from tagpr_rl.run.layout import RunDir, StageDir, stage_dir
from tagpr_rl.run.manifest import StageFacts, read_manifest, stage_facts, verify_outputs
from tagpr_rl.run.mirror import Mirror
from tagpr_rl.run.resume import ATTEMPT, require_same_attempt
from tagpr_rl.tags.schema import TagSchema, schema_from
from tagpr_rl.types import TagprError


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of a finished stage, which the pipeline writes into the manifest."""

    outputs: tuple[Path, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """`StageManifest.details`."""


@dataclass
class StageContext:
    """One stage of one run."""

    recipe: Recipe
    run: RunDir
    name: str
    console: Console
    start_ray: Callable[[], Any]
    """Joins or starts the run's Ray session, which has room for a stage then."""
    mirror: Mirror | None = None
    """The run's copy at a URL; None without one."""
    outages: list[str] = field(default_factory=list)
    """Errors of trackers in this process; shared by all stages."""

    @property
    def dir(self) -> StageDir:
        """This stage's folder."""
        return stage_dir(self.recipe, self.run, self.name)

    @property
    def schema(self) -> TagSchema:
        """The recipe's tag schema."""
        return schema_from(self.recipe.schema_file)

    @cached_property
    def facts(self) -> StageFacts:
        """What the stage is made from, hashed once; the pipeline asks before the stage writes anything."""
        return stage_facts(self.recipe, self.run, self.name)

    @cached_property
    def dataset(self) -> Dataset:
        """The questions of the finished data stage, with the recipe's retrieval and prompts."""
        return Dataset(self.recipe, self.schema, self.nearest("data", reads=(LAMP,)).root)

    def earlier(self, name: str, *, reads: Iterable[str] = ()) -> StageDir:
        """Folder of the finished stage `name`, after the outputs `reads` were compared with their hashes."""
        folder = stage_dir(self.recipe, self.run, name)
        manifest = read_manifest(folder)
        if manifest is None:
            raise TagprError(f"stage '{self.name}' needs stage '{name}', which is not finished ({folder.root})")
        verify_outputs(folder, manifest, only=tuple(reads))
        return folder

    def nearest(self, kind: str, *, reads: Iterable[str] = ()) -> StageDir:
        """Folder of the nearest earlier stage of a kind."""
        name = nearest(self.recipe, self.name, kind)
        if name is None:
            raise TagprError(f"stage '{self.name}' needs an earlier stage of kind '{kind}'")
        return self.earlier(name, reads=reads)

    def model_folder(self, name: str) -> Path:
        """Absolute path of the published weights of stage `name`, verified."""
        return self.earlier(name, reads=("hf",)).hf.resolve()

    def warn(self, text: str) -> None:
        """Print a line of warning as it is."""
        self.console.print(f"[yellow]{escape(text)}[/yellow]", highlight=False, soft_wrap=True)

    def clean(self, *keep: str) -> None:
        """Delete what an interrupted attempt left in the stage's folder, except the entries `keep`."""
        root = self.dir.root
        root.mkdir(parents=True, exist_ok=True)
        for entry in root.iterdir():
            if entry.name not in keep:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def guard_attempt(self) -> None:
        """TagprError if an interrupted attempt was made from other inputs.

        The manifest tells this for a finished stage. An unfinished one may have checkpoints, and verl would resume them
        whatever they were trained on.
        """
        require_same_attempt(self.recipe, self.run, self.name, self.facts)
        write_json(self.dir.root / ATTEMPT, asdict(self.facts))


class LazyRay:
    """The run's Ray session, started by the first stage that needs it and ended with the pipeline.

    A later stage waits until a cluster that others use, too, has room for it again.
    """

    def __init__(self, recipe: Recipe, logs: Path | None = None) -> None:
        self._recipe, self._logs = recipe, logs
        self._stack = ExitStack()
        self._ray: Any = None

    def __call__(self) -> Any:
        if self._ray is None:
            from tagpr_rl.backend.session.ray_session import ray_session

            self._ray = self._stack.enter_context(ray_session(self._recipe, self._logs))
        elif self._recipe.platform.ray_address:
            from tagpr_rl.backend.session.room import wait_for_room

            wait_for_room(self._recipe)
        return self._ray

    def __enter__(self) -> LazyRay:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
