"""Documentation that cannot rot: pages, links, paths, commands, recipes and sizes are checked against the code."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import tagpr_rl
from tagpr_rl.config import load_recipe
from tagpr_rl.plan.show import problems

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
generate = importlib.import_module("generate")
generate_cli = importlib.import_module("generate_cli")

PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "recipes" / "README.md", ROOT / "cluster" / "README.md"]
)
HISTORY = {"docs/log.md", "CHANGELOG.md"}  # they name commands and files of their time
CURRENT = [page for page in PAGES if str(page.relative_to(ROOT)) not in HISTORY]
FOLDERS = ("tagpr_rl", "docs", "recipes", "bench", "cluster", "tests", "requirements", ".github", ".ci")
README_LINES = 180
CLI = DOCS / "reference" / "cli.md"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------------------------------------- generated pages


def test_generated_pages_are_those_of_the_code() -> None:
    stale = [
        name(path)
        for path, text in generate.generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `python docs/generate.py` and commit what it writes"


def test_a_part_is_replaced_and_the_rest_stays() -> None:
    text = "before\n<!-- x: generated -->\nold\n<!-- /x -->\nafter\n"
    expected = "before\n<!-- x: generated -->\nnew\n<!-- /x -->\nafter\n"
    assert generate.with_part(text, "x", "new") == expected
    with pytest.raises(ValueError, match="no part 'y'"):
        generate.with_part(text, "y", "new")


# ------------------------------------------------------------------------------------------------------- links

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """The page without code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs give to a page's headings."""
    actual = set()
    for heading in re.findall(r"^#+\s+(.*)$", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.lower())
        actual.add(re.sub(r"\s", "-", words.strip()))
    return actual


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_images_resolve(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    text = "[a](docs/nothing.md) [b](docs/results.md#nothing) ![c](x.png) [d](docs/results.md#prmu) [e](https://x.org)"
    assert broken_links(ROOT / "README.md", text) == ["docs/nothing.md", "docs/results.md#nothing", "x.png"]


def test_every_page_is_in_the_site_s_navigation() -> None:
    def files(entries: object) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        values = entries if isinstance(entries, list) else list(dict(entries).values())  # type: ignore[call-overload]
        return [file for value in values for file in files(value)]

    shown = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = [str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS)]
    assert sorted(file for file in shown if file.endswith(".md")) == sorted(there)
    assert [file for file in shown if not (DOCS / file).is_file()] == []


# ----------------------------------------------------------------------------------------------- paths and commands

CODE = re.compile(r"`([^`\n]+)`")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks without comments, and inline code."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fences if language not in ("yaml", "python")]
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [*lines, *CODE.findall(prose(text))]


def missing_paths(text: str) -> list[str]:
    words = {word.strip("()'\",;:") for line in code_lines(text) for word in line.split()}
    paths = [word for word in words if word.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    return sorted(path for path in paths if "<" not in path and not list(ROOT.glob(path.rstrip("/."))))


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    assert missing_paths(page.read_text(encoding="utf-8")) == []


def test_a_missing_path_is_seen() -> None:
    assert missing_paths("`bench/nothing.py`, `bench/trl.py`, `tagpr_rl/*/rubric.py`") == ["bench/nothing.py"]


def wrong_commands(text: str) -> list[str]:
    """`tagpr ...` and `make ...` lines that the command line or the Makefile would refuse."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    wrong = []
    for line in code_lines(text):
        words = shlex.split(line) if line.startswith(("tagpr ", "make ")) else []
        if words[:1] == ["make"] and words[1] not in targets:
            wrong.append(line)
        if words[:1] == ["tagpr"] and "COMMAND" not in words and (mistake := generate_cli.command_mistake(words[1:])):
            wrong.append(f"{line}: {mistake}")
    return wrong


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_every_command_that_a_page_names_is_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page == CLI:  # its code blocks hold usage lines
        assert text.count("Example: `tagpr ") > 10
        text = prose(text)
    assert wrong_commands(text) == []


def test_a_wrong_command_is_seen() -> None:
    text = "`tagpr runn demo` `tagpr run demo --nothing` `tagpr run demo --until sft` `make demmo` `tagpr`"
    assert len(wrong_commands(text)) == 3


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_recipes_that_a_page_names_load_and_fit(page: Path) -> None:
    for line in code_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(line) if line.startswith(("tagpr run ", "tagpr plan ")) else []
        for recipe in [word for word in words[2:3] if word.islower() and not word.startswith("-")]:
            path = ROOT / recipe if recipe.endswith(".yaml") else ROOT / "recipes" / f"{recipe}.yaml"
            overrides = tuple(word for word in words[3:] if re.match(r"[\w.]+=", word))
            assert problems(load_recipe(path, overrides)) == [], line


def unknown_keys(text: str) -> list[str]:
    """Dotted recipe keys in inline code, with or without a value, that no recipe has."""
    known = {
        re.sub(r"<\w+ stage>", "*", f"{prefix}.{key}".lstrip("."))
        for prefix, model in generate.recipe_blocks()
        for key in model.model_fields
    }
    blocks = {key.partition(".")[0] for key in known}
    actual = re.findall(r"`([a-z_]+(?:\.(?:[a-z_]+|<name>))+)(?:[=:][^`]*)?`", prose(text))
    dotted = [key for key in actual if key.partition(".")[0] in blocks and not key.endswith((".py", ".md", ".json"))]
    return [key for key in dotted if re.sub(r"^stages\.[^.]+", "stages.*", key) not in {*known, "stages.*"}]


@pytest.mark.parametrize("page", [page for page in CURRENT if page.name != "recipe.md"], ids=name)
def test_every_dotted_recipe_key_that_a_page_names_exists(page: Path) -> None:
    assert unknown_keys(page.read_text(encoding="utf-8")) == []


def test_an_unknown_key_is_seen() -> None:
    text = (
        "`log.wandb=offline` `log.trackers` `stages.guided.lr=1e-4` `stages.guided.leraning_rate` `data.prompt.stile`"
    )
    assert unknown_keys(text) == ["log.trackers", "stages.guided.leraning_rate", "data.prompt.stile"]


# -------------------------------------------------------------------------------------------------------- examples

YAML = re.compile(r"^```yaml\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in CURRENT if YAML.search(page.read_text(encoding="utf-8"))], ids=name)
def test_yaml_examples_are_recipes_or_sweeps(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(YAML.findall(page.read_text(encoding="utf-8"))):
        raw = yaml.safe_load(block)
        if "tags" in raw:  # a tag schema
            from tagpr_rl.tags.schema import load_schema

            (tmp_path / "tags.yaml").write_text(block, encoding="utf-8")
            assert load_schema(tmp_path / "tags.yaml").names
        elif "arms" in raw:
            from tagpr_rl.run.sweep import load_sweep

            path = tmp_path / "sweep.yaml"
            path.write_text(yaml.safe_dump(raw | {"recipe": str(ROOT / "recipes/demo.yaml")}), encoding="utf-8")
            assert load_sweep(path)
        else:
            raw.pop("extends", None)
            path = tmp_path / f"{number}.yaml"
            path.write_text(yaml.safe_dump(raw | {"extends": str(ROOT / "recipes/demo.yaml")}), encoding="utf-8")
            assert load_recipe(path).stages


PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in CURRENT if PYTHON.search(page.read_text(encoding="utf-8"))], ids=name
)
def test_python_examples_run(page: Path) -> None:
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, name(page), "exec"), {})


def test_the_readme_fits() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_forms_of_the_repository_are_whole() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == tagpr_rl.__version__
    assert len(citation["references"][0]["authors"]) == 9 and "2509.23140" in citation["references"][0]["url"]
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= yaml.safe_load(form.read_text(encoding="utf-8")).keys()
