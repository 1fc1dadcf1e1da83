"""A run's copy at a URL of fsspec (s3://, gs://, file://, memory://): written while it runs, read by `resume URL`.

Training works on a local folder; finished stages and step checkpoints are copied to `<url>/<run's name>` with
the same layout. A folder's manifest.json is written last, so that a folder without one is not complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagpr_rl.config import Recipe, recorded_recipe
from tagpr_rl.run import checkpoints
from tagpr_rl.run.layout import RunDir, StageDir, stage_dir
from tagpr_rl.run.manifest import read_manifest, verify_outputs
from tagpr_rl.types import TagprError

_MANIFEST = "manifest.json"
_ATTEMPT_FILES = ("attempt.json", "metrics.jsonl", "alerts.jsonl")


class Mirror:
    """The copy of one run. Every method raises TagprError, naming the URL, if the other side fails."""

    def __init__(self, url: str) -> None:
        """`url` names the run's own folder, `<out>/<name>`."""
        self.url = url.rstrip("/")
        self._sent: set[str] = set()
        self._made: set[str] = set()
        self.failed: tuple[str, int] | None = None
        """Stage and step of a checkpoint that could not be copied; the next one is tried again."""
        with self._remote("opening it"):
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(self.url)

    # --- writing ------------------------------------------------------------------------------------------

    def require_same_run(self, run: RunDir) -> None:
        """TagprError if another run, or this one from another machine, is at the URL already."""
        remote = self._read("tracking.json")
        if remote is None and self._read("resolved.json") is None:
            return
        local = run.tracking.read_bytes() if run.tracking.is_file() else None
        if remote is None or local is None or json.loads(remote)["id"] != json.loads(local)["id"]:
            raise TagprError(
                f"{self.url} holds a run that is not the one in {run.root}. Go on with it: "
                f"`tagpr resume {self.url}`; or choose another name=<new name>, or start over with --fresh."
            )

    def push_files(self, run: RunDir) -> None:
        """Copy the files that belong to no stage: recipe, environment, tracker's id, report."""
        names = (run.environment, run.tracking, run.root / "wandb_last_step", run.report_json, run.report_html)
        for path in (*names, run.resolved):
            if path.is_file():
                self._put(path, path.name)

    def push_stage(self, run: RunDir, folder: StageDir) -> None:
        """Copy a finished stage, its manifest last; nothing if it is there already. Checkpoints are left out."""
        prefix = folder.root.relative_to(run.root).as_posix()
        if self._read(f"{prefix}/{_MANIFEST}") == folder.manifest.read_bytes():
            return
        self._remove(f"{prefix}/{_MANIFEST}")
        for path in _files(folder.root):
            name = path.relative_to(folder.root).as_posix()
            if name != _MANIFEST and not name.startswith(("checkpoints/", ".")):
                self._put(path, f"{prefix}/{name}")
        self._put(folder.manifest, f"{prefix}/{_MANIFEST}")

    def push_checkpoint(self, run: RunDir, folder: StageDir) -> bool:
        """Copy an unfinished stage's newest checkpoint and the files that belong to it, then delete older ones at the
        URL that are gone here.

        False if there was nothing new. Rows and rollouts are copied first, so that no checkpoint is without them.
        """
        steps = checkpoints.steps(folder.checkpoints)
        prefix = folder.root.relative_to(run.root).as_posix()
        key = f"{prefix}/checkpoints/global_step_{steps[-1]}" if steps else ""
        if not steps or key in self._sent:
            return False
        source = checkpoints.step_folder(folder.checkpoints, steps[-1])
        for name in _ATTEMPT_FILES:
            if (folder.root / name).is_file():
                self._put(folder.root / name, f"{prefix}/{name}")
        for path in _files(folder.rollouts):
            name = f"{prefix}/rollouts/{path.name}"
            if name not in self._sent and not path.name.startswith("."):
                self._put(path, name)
                self._sent.add(name)
        self._remove(f"{key}/{_MANIFEST}")
        try:
            for path in (*(p for p in _files(source) if p != source / _MANIFEST), source / _MANIFEST):
                self._put(path, f"{key}/{path.relative_to(source).as_posix()}")
        except TagprError:
            if source.is_dir():
                raise
            return False  # dropped here meanwhile, because newer ones are whole
        self._sent.add(key)
        self.push_files(run)
        kept = checkpoints.steps(folder.checkpoints)
        for step in (old for old in self._checkpoint_steps(prefix) if old < steps[-1] and old not in kept):
            self._remove(f"{prefix}/checkpoints/global_step_{step}/{_MANIFEST}")
            self._remove(f"{prefix}/checkpoints/global_step_{step}", folder=True)
        return True

    def remove(self) -> None:
        """Delete the copy. Refuses a folder that holds no run."""
        if self._read("resolved.json") is not None:
            self._remove("", folder=True)

    # --- reading ------------------------------------------------------------------------------------------

    def require_answer(self) -> None:
        """TagprError if the other side cannot be read: no network, no credentials, no such bucket."""
        self._read("resolved.json")

    def recipe(self) -> Recipe:
        """The recipe of the run at the URL, with the URL as its mirror."""
        raw = self._read("resolved.json")
        if raw is None:
            raise TagprError(f"{self.url} holds no run: there is no resolved.json")
        try:
            plain = json.loads(raw)
        except ValueError as error:
            raise TagprError(f"{self.url}/resolved.json is not valid JSON ({error})") from None
        recipe = recorded_recipe(plain, source=f"{self.url}/resolved.json")
        parent, _, name = self.url.rpartition("/")
        if name != recipe.name:
            raise TagprError(f"{self.url} holds the run '{recipe.name}'; the folder must have the run's name")
        return recipe.model_copy(update={"mirror": parent})

    def pull(self, recipe: Recipe, run: RunDir) -> tuple[str, ...]:
        """Copy into `run` what it lacks and the URL has; returns one line for each copied thing.

        Finished stages are compared with their hashes. Of an unfinished stage the newest checkpoint comes,
        unless the local one is newer.
        """
        if run.resolved.is_file():
            self.require_same_run(run)
        run.root.mkdir(parents=True, exist_ok=True)
        brought = []
        for name in ("resolved.json", "environment.json", "tracking.json", "wandb_last_step"):
            if not (run.root / name).is_file():
                self._get(name, run.root / name)
        for name in recipe.stages:
            folder = stage_dir(recipe, run, name)
            prefix = folder.root.relative_to(run.root).as_posix()
            if read_manifest(folder) is not None:
                continue
            if self._read(f"{prefix}/{_MANIFEST}") is not None:
                self._pull_stage(recipe, run, name)
                brought.append(f"stage '{name}'")
                continue
            remote, local = self._checkpoint_steps(prefix), checkpoints.steps(folder.checkpoints)
            if remote and (not local or remote[-1] > local[-1]):
                self._pull_attempt(prefix, folder, remote[-1])
                brought.append(f"step {remote[-1]} of stage '{name}'")
        return tuple(brought)

    def _pull_stage(self, recipe: Recipe, run: RunDir, name: str) -> None:
        folder = stage_dir(recipe, run, name)
        prefix = folder.root.relative_to(run.root).as_posix()
        temp = StageDir(run.root / f".pulling_{folder.root.name}")
        shutil.rmtree(temp.root, ignore_errors=True)
        for key in self._find(prefix):
            inner = key.removeprefix(f"{prefix}/")
            if not inner.startswith("checkpoints/"):
                self._get(key, temp.root / inner)
        if recipe.stages[name].kind == "model" and recipe.model.path is not None:
            _link_model(temp.hf, recipe.model.path.resolve())
        manifest = read_manifest(temp)
        assert manifest is not None
        verify_outputs(temp, manifest)
        shutil.rmtree(folder.root, ignore_errors=True)
        temp.root.rename(folder.root)

    def _pull_attempt(self, prefix: str, folder: StageDir, step: int) -> None:
        temp = StageDir(folder.root.with_name(f".pulling_{folder.root.name}"))
        shutil.rmtree(temp.root, ignore_errors=True)
        wanted = f"checkpoints/global_step_{step}/"
        for key in self._find(prefix):
            inner = key.removeprefix(f"{prefix}/")
            if inner.startswith((wanted, "rollouts/")) or inner in _ATTEMPT_FILES:
                self._get(key, temp.root / inner)
        shutil.rmtree(folder.root, ignore_errors=True)
        temp.root.rename(folder.root)

    # --- the other side -----------------------------------------------------------------------------------

    def _checkpoint_steps(self, prefix: str) -> list[int]:
        steps = []
        for key in self._find(f"{prefix}/checkpoints"):
            parts = key.removeprefix(f"{prefix}/checkpoints/").split("/")
            number = parts[0].removeprefix("global_step_")
            if len(parts) == 2 and parts[1] == _MANIFEST and number.isdigit():
                steps.append(int(number))
        return sorted(steps)

    def _find(self, prefix: str) -> list[str]:
        """Every file below `prefix`, relative to the run."""
        with self._remote(f"listing {prefix}"):
            self._fs.invalidate_cache()
            base = self._at(prefix)
            keys: list[str] = self._fs.find(base) if self._fs.exists(base) else []
        root = self._root.lstrip("/")
        return sorted(key.lstrip("/").removeprefix(f"{root}/") for key in keys)

    def _read(self, name: str) -> bytes | None:
        with self._remote(f"reading {name}"):
            try:
                self._fs.invalidate_cache()
                data: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        return data

    def _put(self, path: Path, name: str) -> None:
        with self._remote(f"writing {name}"):
            parent = self._at(name).rpartition("/")[0]
            if parent not in self._made:
                self._fs.makedirs(parent, exist_ok=True)
                self._made.add(parent)
            if path.name in _ATTEMPT_FILES:  # two of them grow meanwhile
                self._fs.pipe_file(self._at(name), path.read_bytes())
            else:
                self._fs.put_file(str(path), self._at(name))

    def _get(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._remote(f"reading {name}"):
            try:
                self._fs.get_file(self._at(name), str(path))
            except FileNotFoundError:
                if name != "wandb_last_step" and name != "environment.json":
                    raise

    def _remove(self, name: str, *, folder: bool = False) -> None:
        with self._remote(f"removing {name or 'the run'}"):
            target = self._at(name)
            if self._fs.exists(target):
                self._fs.rm(target, recursive=folder)
                self._made.clear()

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    @contextmanager
    def _remote(self, doing: str) -> Iterator[None]:
        try:
            yield
        except TagprError:
            raise
        except ImportError as error:
            raise TagprError(f"{self.url}: {error}; for S3: `pip install s3fs`") from None
        except Exception as error:  # every file system of fsspec has its own exceptions
            text = (str(error).splitlines() or [""])[0][:300]
            raise TagprError(f"{self.url}: {doing} failed: {type(error).__name__}: {text}") from error


def mirror_of(recipe: Recipe) -> Mirror | None:
    """The recipe's mirror, or None if it names none."""
    return Mirror(f"{recipe.mirror.rstrip('/')}/{recipe.name}") if recipe.mirror is not None else None


def _link_model(target: Path, source: Path) -> None:
    """Link what a URL has no copy of, as the model stage does: the given model's folder, or its files one by one."""
    if not target.exists():
        target.symlink_to(source)
    elif source.is_dir():
        for file in source.iterdir():
            if file.is_file() and not (target / file.name).exists():
                (target / file.name).symlink_to(file)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, in order; links (a given model's folder or files) are left out."""
    for base, _, names in sorted(os.walk(folder)):
        yield from (path for name in sorted(names) if not (path := Path(base) / name).is_symlink())


def is_url(text: Any) -> bool:
    """True for `scheme://...`."""
    return isinstance(text, str) and "://" in text
