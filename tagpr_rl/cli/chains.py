"""`tagpr chains`: make a run's chains, look at them, write them as a data set, discover tags in them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tagpr_rl.chains.labellers.discover import Discovery, SampleChain, as_dict, discover
from tagpr_rl.chains.labellers.propose import schema_yaml
from tagpr_rl.chains.segment import MIN_STEPS, segment, split_answer
from tagpr_rl.chains.storage import REJECTED, StoredChains, publishing, read_rejected, read_stored, write_dataset
from tagpr_rl.cli.arguments import Overrides, RecipeName, RunName, StageName, full_install, out_folder, say, warn
from tagpr_rl.config import ChainsStage, Recipe, needed_for
from tagpr_rl.files import write_json, write_text
from tagpr_rl.preflight.examine import planned, require_ready
from tagpr_rl.report.cards import card_pages, data_card
from tagpr_rl.report.page.trace import coloured_response
from tagpr_rl.run.layout import StageDir, stage_dir
from tagpr_rl.run.manifest import read_manifest, verify_outputs
from tagpr_rl.run.open import open_recipe, open_run, planned_run
from tagpr_rl.run.state import require_unchanged
from tagpr_rl.tags.grammar import neutralise, parse
from tagpr_rl.tags.schema import TagSchema, default_schema, load_schema
from tagpr_rl.types import StageManifest, TagprError, did_you_mean

SCHEMA_FILE, DISCOVERY = "tags.yaml", "discovery.json"

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def chains_stage(recipe: Recipe, wanted: str | None = None) -> str:
    """The recipe's chains stage, or the one that is wanted. TagprError if there is none, or several."""
    names = [name for name, stage in recipe.stages.items() if isinstance(stage, ChainsStage)]
    if wanted is not None and wanted not in names:
        hint = did_you_mean(wanted, names, otherwise=f"there is {', '.join(names) or 'none'}")
        raise TagprError(f"--stage {wanted}: no chains stage of that name; {hint}")
    if not names:
        raise TagprError(f"recipe '{recipe.name}' has no chains stage")
    if wanted is None and len(names) > 1:
        raise TagprError(
            f"recipe '{recipe.name}' has {len(names)} chains stages ({', '.join(names)}); name one with --stage"
        )
    return wanted or names[0]


commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Make, inspect and publish tagged chains.")


@commands.command("run")
def make(recipe: RecipeName, overrides: Overrides = None, stage: StageName = None) -> None:
    """Make the chains stage of RECIPE and what it needs, nothing else.

    Example: tagpr chains run demo
    """
    loaded, folder = planned_run(open_recipe(recipe, overrides or ()))
    only = needed_for(loaded, chains_stage(loaded, stage))
    require_unchanged(loaded, folder)
    require_ready(planned(loaded, folder, only=only), warn)
    folder.root.mkdir(parents=True, exist_ok=True)
    full_install("tagpr_rl.stages.pipeline").run_pipeline(loaded, folder, only=only)


@commands.command()
def inspect(
    run: RunName,
    stage: StageName = None,
    reason: Annotated[
        str | None, typer.Option(metavar="R", help="Chains rejected for it, for example WRONG_ANSWER.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="T", help="Only of this task, for example LaMP_2.")] = None,
    n: Annotated[int, typer.Option(min=1, metavar="N", help="How many.")] = 5,
) -> None:
    """Print the counts of a run's chains, then some chains: kept ones coloured by tag, or rejected ones.

    Chains are drawn by a hash of their record, tasks taking turns.

    Example: tagpr chains inspect runs/demo --reason WRONG_ANSWER
    """
    print_chains(StoredStage(run, stage), Console(), reason=reason, task=task, n=n)


@commands.command()
def card(
    run: RunName,
    stage: StageName = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/export/STAGE-dataset.", callback=out_folder)
    ] = None,
) -> None:
    """Write a run's chains as a Hugging Face data set with its data card.

    Example: tagpr chains card runs/demo
    """
    say(write_card(StoredStage(run, stage), out))


@commands.command("discover")
def discover_command(
    run: RunName,
    stage: StageName = None,
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="Chains to label.")] = 300,
    tags: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of tags; default: as the steps separate best."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/export/STAGE-tags.", callback=out_folder)
    ] = None,
) -> None:
    """Propose a tag schema from freely labelled chains of a run.

    Example: tagpr chains discover runs/demo --tags 9
    """
    say(discover_tags(StoredStage(run, stage), Console(), sample=sample, tags=tags, out=out))


class StoredStage:
    """A run's chains stage: its folder, and its manifest if it is finished."""

    def __init__(self, run: str, wanted: str | None) -> None:
        self.recipe, self.run = open_run(run)
        self.name = chains_stage(self.recipe, wanted)
        self.folder: StageDir = stage_dir(self.recipe, self.run, self.name)
        self.manifest = read_manifest(self.folder)
        path = self.recipe.schema_file
        self.schema: TagSchema = load_schema(path) if path is not None else default_schema()
        if self.manifest is not None:
            verify_outputs(self.folder, self.manifest)

    @property
    def stage(self) -> ChainsStage:
        stage = self.recipe.stages[self.name]
        assert isinstance(stage, ChainsStage)
        return stage

    def finished(self) -> tuple[StoredChains, StageManifest]:
        """The stage's files. TagprError while it is not finished."""
        if self.manifest is None:
            raise TagprError(
                f"stage '{self.name}' of {self.run.root} is not finished; `tagpr chains run RECIPE` makes it"
            )
        return read_stored(self.folder.root), self.manifest

    def rejected(self) -> list[dict[str, Any]]:
        """What was not kept; also of a stage that ended because nothing was kept."""
        if self.manifest is None and not (self.folder.root / REJECTED).is_file():
            self.finished()
        return read_rejected(self.folder.root)


def print_chains(
    opened: StoredStage, console: Console, *, reason: str | None = None, task: str | None = None, n: int = 5
) -> None:
    """Print the counts, then `n` chains: kept ones coloured by tag, or those rejected for `reason`.

    Raises TagprError for an unfinished stage (unless it left rejected chains), and for a reason or task that no chain
    has.
    """
    rejected = opened.rejected()
    kept = opened.finished()[0].chains.to_pylist() if opened.manifest is not None else []
    counts = Counter(str(row["reason"]) for row in rejected)
    table = Table("outcome", "chains")
    for name, count in [("kept", len(kept)), *sorted(counts.items(), key=lambda item: (-item[1], item[0]))]:
        table.add_row(Text(name), Text(f"{count:,}", justify="right"))
    console.print(f"{opened.run.root}, stage {opened.name}", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    if opened.manifest is None:
        console.print("The stage is not finished: it kept no chain, or ended early.", style="bold")
    if reason is None and kept:
        rows = kept
    elif reason is None:
        rows = rejected
    else:
        rows = [row for row in rejected if row["reason"] == reason.upper()]
        if not rows:
            reasons = ", ".join(sorted(counts))
            raise TagprError(f"--reason {reason}: no chain was rejected for it; reasons: {reasons}")
    if task is not None:
        tasks = sorted({row["task"] for row in rows})
        rows = [row for row in rows if row["task"] == task]
        if not rows:
            raise TagprError(f"--task {task}: none of these chains is of that task; tasks: {', '.join(tasks)}")
    for row in _draw(rows, n):
        _print_chain(row, opened.schema, console)


def _draw(rows: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """At most `n` rows: tasks take turns, and within a task a hash of the record's id decides."""

    def blind(row: dict[str, Any]) -> str:
        return hashlib.sha256(f"{row['task']}/{row['record_id']}/{row.get('sample', 0)}".encode()).hexdigest()

    seen: Counter[str] = Counter()
    ranked = []
    for row in sorted(rows, key=blind):
        ranked.append((seen[row["task"]], row["task"], row))
        seen[row["task"]] += 1
    return [row for *_, row in sorted(ranked, key=lambda item: item[:2])[:n]]


def _print_chain(row: dict[str, Any], schema: TagSchema, console: Console) -> None:
    head = f"{row['task']}  record {row['record_id']}  user {row['user_id']}"
    console.print()
    console.rule(Text(printable(head), "bold"), align="left")
    if "response" in row:
        if not row["correct"]:
            console.print(Text("wrong answer, kept on purpose", "red"))
        console.print(coloured_response(printable(row["response"]), schema, separator="\n"))
        return
    console.print(Text(f"rejected: {row['reason']}", "red"))
    for key, value in row.items():
        if key not in ("record_id", "task", "user_id", "sample", "reason", "text") and value:
            console.print(Text(f"{key}: {printable(str(value))}", "dim"))
    console.print(Text(printable(row["text"])))


def printable(text: str) -> str:
    """`text` with control and direction-changing characters visible: a model's text must not steer a terminal."""
    return _UNSEEN.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def write_card(opened: StoredStage, out: Path | None = None) -> Path:
    """Write the data set's folder with its card; returns it. Default: `<run>/export/<stage>-dataset`."""
    stored, manifest = opened.finished()
    environment = {}
    if opened.run.environment.is_file():
        environment = json.loads(opened.run.environment.read_text(encoding="utf-8"))
    pairs = stored.pairs.select(["task", "kind"]).to_pylist() if stored.pairs is not None else []
    card_facts = data_card.data_card(
        opened.recipe, opened.name, stored.facts, stored.chains.to_pylist(), pairs, opened.schema,
        manifest=manifest, environment=environment,
    )  # fmt: skip
    texts = {"README.md": card_pages.markdown(card_facts), "card.html": card_pages.page(card_facts, opened.schema)}
    texts |= {f"plots/{name}": svg for name, svg in card_pages.plots(card_facts).items()}
    source = {
        "recipe": opened.recipe.name,
        "stage": opened.name,
        "config_sha256": manifest.config_sha256,
        "outputs": dict(manifest.outputs),
    }
    target = out if out is not None else opened.run.root / "export" / f"{opened.name}-dataset"
    return write_dataset(target, stored, opened.schema, texts, source=source)


def discover_tags(
    opened: StoredStage, console: Console, *, sample: int = 300, tags: int | None = None, out: Path | None = None
) -> Path:
    """Label a sample of the run's chains freely and write a proposed tag schema; returns its file.

    Rejected chains that have steps are sampled as well: under a schema that does not fit, most chains are rejected.
    Files: tags.yaml (for a recipe's `schema_file`) and discovery.json, in `<run>/export/<stage>-tags` by default.
    """
    chains = _sample(opened, sample)
    free_labeller = full_install("tagpr_rl.stages.chains").free_labeller
    with free_labeller(opened.recipe, opened.stage, console) as (generator, limit):
        discovery = discover(chains, generator, tags=tags, seed=opened.stage.seed, max_tokens=limit)
        labeller = generator.name
    _print_discovery(discovery, console)
    target = out if out is not None else opened.run.root / "export" / f"{opened.name}-tags"
    heading = [
        f"Proposed by tag discovery from {len(chains)} chains, labelled by {labeller}; a start, not a result.",
        f"{100 * discovery.coverage:.1f} % of their steps are in these tags; "
        f"{100 * discovery.fit:.1f} % of the chains meet the whole schema.",
        "Names and purposes come from the labels: rewrite them, for policy and labeller read them.",
    ]
    notes = {
        tag.name: (
            f"{100 * tag.share:.1f} % of the steps, in {100 * tag.chain_share:.1f} % of the chains",
            *(f"example: {text[:160]}" for text in tag.examples),
        )
        for tag in discovery.tags
    }
    with publishing(target, DISCOVERY) as new:
        write_text(new / SCHEMA_FILE, schema_yaml(discovery.schema, heading, notes))
        write_json(new / DISCOVERY, {"labeller": labeller} | as_dict(discovery))
    return target / SCHEMA_FILE


def _sample(opened: StoredStage, most: int) -> list[SampleChain]:
    """Chains without their tags, kept and rejected ones: those that have an answer and enough steps."""
    rows = []
    if opened.manifest is not None:
        rows += opened.finished()[0].chains.to_pylist()
    rows += opened.rejected()
    usable = []
    for row in rows:
        if "response" in row:
            trace = parse(row["response"], opened.schema).trace
            steps = tuple(step.text for step in trace.steps) if trace is not None else ()
        else:
            parts = split_answer(row["text"])
            steps = tuple(segment(neutralise(parts[0]))) if parts is not None else ()
        if len(steps) >= MIN_STEPS:
            usable.append({**row, "steps": tuple(" ".join(step.split()) for step in steps)})
    if not usable:
        raise TagprError(f"{opened.folder.root} has no chain with at least {MIN_STEPS} steps to discover tags in")
    return [SampleChain(row["task"], row["record_id"], row["steps"]) for row in _draw(usable, most)]


def _print_discovery(discovery: Discovery, console: Console) -> None:
    table = Table("tag", "steps", "share", "chains", "rules", "labels")
    for tag in discovery.tags:
        spec = discovery.schema.by_name[tag.name]
        labels = ", ".join(f"{label} ({count})" for label, count in list(tag.labels.items())[:3])
        share, chains = f"{100 * tag.share:.1f} %", f"{100 * tag.chain_share:.1f} %"
        table.add_row(*(Text(cell) for cell in (tag.name, str(tag.steps), share, chains, spec.occurrences, labels)))
    console.print(table)
    left = ", ".join(f"{n} {reason}" for reason, n in discovery.unassigned.items() if n) or "none"
    console.print(
        f"{100 * discovery.coverage:.1f} % of {discovery.steps} steps covered; unassigned: {left}. "
        f"{100 * discovery.fit:.1f} % of the labelled chains meet the whole schema.",
        highlight=False, markup=False,
    )  # fmt: skip
