"""The curated view at W&B's server, through W&B's own package `wandb-workspaces`; a process of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

from tagpr_rl.run.trackers import GLOBAL_STEP

MISSING = 3
"""Exit code if the package is not installed."""


def workspace(given: dict[str, Any]) -> Any:
    """The view as a `wandb_workspaces.workspaces.Workspace`; needs no server.

    Args:
        given: {"entity", "project", "name", "sections": monitor.view.as_json}.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=section["name"],
            is_open=True,
            panels=[
                panels.LinePlot(title=panel["title"], x=GLOBAL_STEP, y=list(panel["metrics"]))
                for panel in section["panels"]
            ],
        )
        for section in given["sections"]
    ]
    settings = workspaces.WorkspaceSettings(x_axis=GLOBAL_STEP, remove_legends_from_panels=False)
    return workspaces.Workspace(
        entity=given["entity"], project=given["project"], name=given["name"], sections=sections, settings=settings
    )


def save(given: dict[str, Any]) -> str:
    """Save the view, over the one at `given["url"]` if there is one, and return its URL."""
    import wandb
    import wandb_workspaces.workspaces as workspaces

    given = {**given, "entity": given["entity"] or wandb.Api().default_entity}
    made = workspace(given)
    if given.get("url"):
        existing = workspaces.Workspace.from_url(given["url"])
        existing.name, existing.sections, existing.settings = made.name, made.sections, made.settings
        made = existing
    return str(made.save().url)


def main() -> int:
    """Read {"entity", "project", "name", "sections", "url"} on standard input; print the view's URL."""
    given = json.load(sys.stdin)
    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError:
        return MISSING
    print(save(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
