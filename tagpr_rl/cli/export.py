"""`tagpr export`: a stage's model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tagpr_rl.cli.arguments import RunName, full_install, say
from tagpr_rl.run.open import open_run


def command(
    run: RunName,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="A model, sft or grpo stage.")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "float32",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/export/STAGE-DTYPE.")] = None,
) -> None:
    """Write the model of a finished stage of RUN as a Hugging Face folder, with a model card.

    Adapters are merged into the weights.

    Example: tagpr export runs/demo --stage explore --dtype bfloat16
    """
    recipe, folder = open_run(run)
    say(full_install("tagpr_rl.studies.export").export(recipe, folder, stage, dtype=dtype, out=out))
