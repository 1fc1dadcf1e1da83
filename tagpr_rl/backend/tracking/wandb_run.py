"""The pipeline's one W&B run, joined by each stage's process; at the end its results, from a process of their own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.run import metrics
from tagpr_rl.run.trackers import GLOBAL_STEP, StepGate, without_secrets

SHELL_DECIDES = frozenset(
    {
        *("API_KEY", "BASE_URL", "APP_URL", "ENTITY", "ORGANIZATION", "USERNAME", "USER_EMAIL", "IDENTITY_TOKEN_FILE"),
        *("CREDENTIALS_FILE", "HTTP_TIMEOUT", "INSECURE_DISABLE_SSL", "HTTPS_PROXY", "HTTP_PROXY", "CACHE_DIR"),
        *("CONFIG_DIR", "DATA_DIR", "ERROR_REPORTING", "DEBUG", "CORE_DEBUG", "TAGS", "NOTES", "IGNORE_GLOBS"),
    }
)
"""WANDB_... variables of the shell that W&B may read: the account, the network, folders outside the run, remarks."""
START_TIMEOUT_S = 30.0
"""W&B's own is 90 s, and an outage would cost that in each stage."""
FINISH_TIMEOUT_S = 60.0


class WandbSink:
    """One process's part in the run: `<stage>/<metric>` over `train/global_step`."""

    def __init__(
        self, settings: TrackingSettings, config: dict[str, Any], gate: StepGate, warn: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._gate = gate
        self.run = start(settings, config, warn)
        self.run.define_metric(GLOBAL_STEP, hidden=True)
        self.run.define_metric("*", step_metric=GLOBAL_STEP)
        self._tables: dict[str, Any] = {}
        self._catch_up()

    def _catch_up(self) -> None:
        """After a restart, send again what W&B may not have: the stage's rows that follow the last one it has.

        An online run knows its last step. An offline one does not: rows up to the stage's checkpoint, which are those
        in metrics.jsonl, count as recorded, and later steps are sent once more when they are made again. Of two rows
        of one step W&B drops the second.
        """
        rows = metrics.rows(Path(self._settings.metrics_file))
        checkpoint = self._settings.step_offset + (int(rows[-1]["step"]) if rows else 0)
        recorded = checkpoint if self.run.offline else int(self.run.starting_step) - 1
        self._gate.last = min(self._gate.last, recorded)
        for row in rows:
            self.log({key: value for key, value in row.items() if key not in ("step", "time_s")}, int(row["step"]))

    def log(self, row: dict[str, float], step: int) -> None:
        """Send one step, unless the run has it from before a restart."""
        stage, number = self._settings.stage, self._settings.step_offset + step
        if self._gate.admit(number):
            named = {f"{stage}/{key}": value for key, value in row.items()}
            self.run.log({**named, **self._tables, f"{stage}/step": step, GLOBAL_STEP: number}, step=number)
        self._tables = {}

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table that goes with the next step."""
        import wandb

        self._tables[f"{self._settings.stage}/{name}"] = wandb.Table(columns=columns, data=rows)

    def alert(self, title: str, text: str) -> None:
        """W&B's own alert (mail or chat, as its user has set)."""
        self.run.alert(title=title, text=text, level="WARN")

    def finish(self, exit_code: int) -> None:
        """End this process's part. `run.finish` returns before its file is complete; W&B's service ends after it."""
        import wandb

        self.run.finish(exit_code=exit_code)
        wandb.teardown()


def start(settings: TrackingSettings, config: dict[str, Any], warn: Callable[[str], None]) -> Any:
    """Join the run of this id, or make it. Where an online start fails, the run is recorded offline, with a warning."""
    wanted = drop_variables(warn)
    import wandb

    os.makedirs(settings.wandb_dir, exist_ok=True)

    def init(mode: Any) -> Any:
        return wandb.init(
            project=settings.project,
            id=settings.run_id,
            resume="allow",
            name=settings.group,
            dir=settings.wandb_dir,
            mode=mode,
            # W&B's records of the command line, the git remote and the machine may hold names and tokens.
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=mode == "offline", x_disable_meta=True, disable_git=True,
                disable_code=True, init_timeout=START_TIMEOUT_S, login_timeout=int(START_TIMEOUT_S),
                finish_timeout=FINISH_TIMEOUT_S,
            ),
        )  # fmt: skip

    mode = settings.wandb_mode
    if mode == "online" and keeps_back(wanted):
        mode = "offline"  # what the shell keeps back must not leave the machine
        warn("log.wandb is online, but WANDB_MODE or WANDB_DISABLED of the shell is not: this part is recorded offline")
    try:
        run = init(mode)
    except Exception as error:
        if mode != "online":
            raise
        warn(
            f"W&B did not start online; this part of run {settings.run_id} is recorded offline. Upload it later with "
            f"`wandb sync {settings.wandb_dir}/wandb/offline-run-*-{settings.run_id}` ({type(error).__name__}: {error})"
        )
        wandb.teardown()
        run = init("offline")
    if run.id != settings.run_id or run.settings.project != settings.project:
        warn(
            f"W&B recorded this part as run {run.id} of project {run.settings.project}, not as run {settings.run_id} "
            f"of {settings.project}, which tracking.json names: it stands apart from the run's other parts"
        )
    recipe = Path(settings.wandb_dir) / "resolved.json"
    if recipe.is_file():
        config = {**config, "recipe": json.loads(recipe.read_text(encoding="utf-8"))}
    run.config.update(without_secrets(config), allow_val_change=True)
    return run


def keeps_back(variables: Mapping[str, str]) -> bool:
    """Whether the shell's variables say that nothing may leave the machine."""
    disabled = variables.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes")
    return disabled or variables.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")


def drop_variables(warn: Callable[[str], None]) -> dict[str, str]:
    """Take the shell's WANDB_ variables that would win over the recipe out of this process, with one warning; they are
    returned.

    `wandb agent`, a notebook or another training script sets WANDB_SWEEP_ID, WANDB_RUN_ID, WANDB_MODE and the like; a
    sweep's id makes `wandb.init` ignore the run's own id.
    """
    prefix = "WANDB_"
    names = sorted(
        name
        for name in os.environ
        if name.startswith(prefix) and not name.startswith((f"{prefix}X_", f"{prefix}_"))
        and name.removeprefix(prefix) not in SHELL_DECIDES
    )  # fmt: skip
    if names:
        warn(
            f"not used, since the recipe's `log` decides about W&B's run (unset them): {', '.join(names)} of the shell"
        )
    return {name: os.environ.pop(name) for name in names}


def main() -> None:
    """Read {"settings": TrackingSettings, "results": {name: number}} on standard input; write the run's summary.

    A process of its own, so that the caller can end it when W&B hangs. Warnings go to standard output.
    """
    given = json.load(sys.stdin)
    settings = TrackingSettings(**given["settings"])
    if settings.wandb_mode != "disabled":
        run = start(settings, {}, lambda text: print(text))
        run.summary.update(given["results"])
        run.finish()
    if settings.tensorboard:
        from tagpr_rl.backend.tracking.tensorboard import write_results

        write_results(settings, given["results"])


if __name__ == "__main__":
    main()
