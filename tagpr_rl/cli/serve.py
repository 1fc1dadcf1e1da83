"""`tagpr serve` answers over HTTP what a finished run's models know."""

from __future__ import annotations

from typing import Annotated

import typer

from tagpr_rl.cli.arguments import RunName, StageName, check_stage, full_install, say
from tagpr_rl.config import Recipe
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest, verify_outputs
from tagpr_rl.run.open import open_run
from tagpr_rl.serve.access import access
from tagpr_rl.serve.prmu import make_app
from tagpr_rl.types import TagprError

commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Serve a finished run's models over HTTP.")


@commands.callback()
def serve() -> None:
    """Serve a finished run's models over HTTP. `vllm serve` serves a policy: tagpr export writes its folder."""


@commands.command()
def prmu(
    run: RunName,
    stage: StageName = None,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8266,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: the recipe's.")] = None,
) -> None:
    """Score responses for users with a run's reward model (default: the recipe's first).

    POST /v1/score takes batches, /docs describes it. With TAGPR_TOKEN in the environment a call shows that token
    (Authorization: Bearer TOKEN). Ctrl-C ends.

    Example: tagpr serve prmu runs/demo
    """
    recipe, folder = open_run(run)
    name = prmu_stage(recipe, folder, stage)
    rules = access(host)
    scorer = full_install("tagpr_rl.prmu.serving.score").Scorer
    uvicorn = full_install("uvicorn")
    model = scorer(stage_dir(recipe, folder, name).root / "prmu", device or recipe.platform.device)
    app = make_app(model, f"{recipe.name}:{name}", rules)
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}/docs (Ctrl-C ends)")
    server = uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, server_header=False, limit_concurrency=256, ws="none"
    )
    uvicorn.Server(server).run()


def prmu_stage(recipe: Recipe, run: RunDir, wanted: str | None) -> str:
    """The finished PRMU stage, with the outputs that its manifest names. TagprError if there is none."""
    check_stage(wanted, recipe.stages, "--stage")
    names = [name for name, stage in recipe.stages.items() if stage.kind == "prmu"]
    name = wanted or next(iter(names), None)
    if name is None or name not in names:
        raise TagprError(f"--stage {name}: no stage of kind prmu; {run.root} has {', '.join(names) or 'none'}")
    folder = stage_dir(recipe, run, name)
    manifest = read_manifest(folder)
    if manifest is None:
        raise TagprError(
            f"stage '{name}' of {run.root} is not finished; `tagpr resume {run.root}` goes on with the run"
        )
    verify_outputs(folder, manifest, only=("prmu",))
    return name
