"""A run's latest metrics in Prometheus' text format (version 0.0.4), for `/metrics` of the live view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tagpr_rl.report.page.read import Row, number
from tagpr_rl.run.progress import Progress

_STATES = ("todo", "running", "interrupted", "done")
_ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n"}


def text_format(run: str, rows: Mapping[str, Sequence[Row]], progress: Mapping[str, Progress]) -> str:
    """Three families: the state of each stage, its latest step, and every number of its latest row.

    A metric's name is a label (`metric="reward/total/mean"`), because its characters are not those of a family's name.
    """
    own = {stage: stage_rows[-1] for stage, stage_rows in rows.items() if stage_rows}
    states = [
        (labels(run=run, stage=stage, state=state), float(where.state == state))
        for stage, where in progress.items()
        for state in _STATES
    ]
    steps = [
        (labels(run=run, stage=s), value) for s, row in own.items() if (value := number(row.get("step"))) is not None
    ]
    values = [
        (labels(run=run, stage=stage, metric=key), value)
        for stage, row in own.items()
        for key, raw in row.items()
        if key != "step" and (value := number(raw)) is not None
    ]
    lines = [
        *family("tagpr_stage_state", "1 for the state that the stage is in.", states),
        *family("tagpr_stage_step", "Latest training step of the stage.", steps),
        *family("tagpr_metric", "A number of the stage's latest training step.", values),
    ]
    return "\n".join(lines) + "\n"


def family(name: str, meaning: str, samples: Sequence[tuple[str, float]]) -> Iterator[str]:
    """The lines of one gauge."""
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} gauge"
    for label, value in samples:
        yield f"{name}{label} {value!r}"


def labels(**values: str) -> str:
    """`{run="demo",stage="guided"}` with the escapes of the format."""
    pairs = (f'{key}="{"".join(_ESCAPES.get(c, c) for c in value)}"' for key, value in values.items())
    return "{" + ",".join(pairs) + "}"
