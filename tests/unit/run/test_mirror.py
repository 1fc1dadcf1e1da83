"""A run's copy at a URL: what is written when, what comes back, what is refused. On file:// and memory://, and S3."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from made_runs import finish, flip, recipe, save

from tagpr_rl.cli import main
from tagpr_rl.config import Recipe, dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.files import write_json, write_text
from tagpr_rl.run import checkpoints, mirror
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest, stage_facts
from tagpr_rl.run.mirror import Mirror, mirror_of
from tagpr_rl.run.resume import ATTEMPT
from tagpr_rl.run.trackers import tracker_id
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server on loopback with a bucket; its URL goes into the environment."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `s3`)")
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    patch = pytest.MonkeyPatch()
    for key, value in {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        patch.setenv(key, value)
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"{url}/bucket", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield "s3://bucket/runs"
    finally:
        patch.undo()
        server.kill()
        server.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")) + f"/{tmp_path.name}"
    return f"file://{tmp_path}/far" if request.param == "file" else f"memory://{tmp_path.name}"


def interrupted(run: RunDir, r: Recipe, mirror: Mirror, *, at: int) -> None:
    """A run killed in the guided stage after checkpoints of the steps 1..at, mirrored as the pipeline does."""
    tracker_id(run)
    write_json(run.resolved, dump_recipe(r))
    for name in list(r.stages)[: list(r.stages).index("guided")]:
        finish(r, run, name)
        mirror.push_files(run)
        mirror.push_stage(run, stage_dir(r, run, name))
    folder = stage_dir(r, run, "guided")
    write_json(folder.root / ATTEMPT, asdict(stage_facts(r, run, "guided")))
    identity = checkpoints.begin(folder.checkpoints, {"a": 1}, keep=2)
    for step in range(1, at + 1):
        write_text(folder.metrics, "".join(f'{{"step": {n}}}\n' for n in range(1, step + 1)))
        write_text(folder.root / "alerts.jsonl", f'{{"step": {step}}}\n')
        write_text(folder.rollouts / f"step_{step:04d}.jsonl", "{}\n")
        save(folder.checkpoints, step, identity)
        assert mirror.push_checkpoint(run, folder)
        assert not mirror.push_checkpoint(run, folder)  # nothing new


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_from_its_url(base: str, tmp_path: Path) -> None:
    r = recipe(lambda raw: raw.update(mirror=base))
    here, mirror = RunDir(tmp_path / "here" / "r"), mirror_of(r)
    assert mirror is not None and mirror.url == f"{base}/r"
    interrupted(here, r, mirror, at=3)
    assert mirror._checkpoint_steps("080_guided") == [2, 3]

    there, far = RunDir(tmp_path / "there" / "r"), Mirror(f"{base}/r")
    assert far.recipe() == r
    brought = far.pull(r, there)
    assert brought == (*(f"stage '{name}'" for name in list(r.stages)[:7]), "step 3 of stage 'guided'")
    for name in list(r.stages)[:7]:
        assert read_manifest(stage_dir(r, there, name)) == read_manifest(stage_dir(r, here, name))
    guided = stage_dir(r, there, "guided")
    assert checkpoints.steps(guided.checkpoints) == [3]
    assert checkpoints.fault(guided.checkpoints / "global_step_3") is None
    assert [json.loads(line)["step"] for line in guided.metrics.read_text().splitlines()] == [1, 2, 3]
    assert (guided.root / "alerts.jsonl").read_text(encoding="utf-8") == '{"step": 3}\n'  # not raised again
    assert len(list(guided.rollouts.iterdir())) == 3 and (guided.root / ATTEMPT).is_file()
    assert tracker_id(there) == tracker_id(here)
    assert far.pull(r, there) == ()  # nothing more to bring
    mirror.remove()
    with pytest.raises(TagprError, match="holds no run"):
        Mirror(f"{base}/r").recipe()


def test_a_checkpoint_without_its_manifest_is_not_there(base: str, tmp_path: Path) -> None:
    r = recipe(lambda raw: raw.update(mirror=base))
    here = RunDir(tmp_path / "here" / "r")
    mirror = Mirror(f"{base}/r")
    interrupted(here, r, mirror, at=2)
    mirror._remove("080_guided/checkpoints/global_step_2/manifest.json")  # as after a kill while it was copied
    there = RunDir(tmp_path / "there" / "r")
    assert "step 1 of stage 'guided'" in Mirror(f"{base}/r").pull(r, there)


def test_a_stage_that_was_altered_at_the_url_is_refused(tmp_path: Path) -> None:
    r = recipe()
    here, mirror = RunDir(tmp_path / "here" / "r"), Mirror(f"file://{tmp_path}/far/r")
    interrupted(here, r, mirror, at=1)
    flip(tmp_path / "far" / "r" / "040_base" / "hf" / "model.txt")
    there = RunDir(tmp_path / "there" / "r")
    with pytest.raises(TagprError, match=r"model\.txt, an output of stage 'base', differs"):
        mirror.pull(r, there)
    assert not stage_dir(r, there, "base").root.exists()


def test_another_run_at_the_url_is_not_overwritten(tmp_path: Path) -> None:
    r, mirror = recipe(), Mirror(f"file://{tmp_path}/far/r")
    interrupted(RunDir(tmp_path / "a"), r, mirror, at=1)
    mirror.require_same_run(RunDir(tmp_path / "a"))
    other = RunDir(tmp_path / "b")
    for _ in range(2):
        with pytest.raises(TagprError, match="holds a run that is not the one in"):
            mirror.require_same_run(other)
        tracker_id(other)  # another id is another run, too


def test_a_checkpoint_that_cannot_be_copied_is_an_error_naming_the_url(tmp_path: Path) -> None:
    r, mirror = recipe(), Mirror(f"file://{tmp_path}/far/r")
    run = RunDir(tmp_path / "a")
    interrupted(run, r, mirror, at=1)
    shutil.rmtree(tmp_path / "far")
    (tmp_path / "far").write_text("a file stands here")
    with pytest.raises(TagprError, match=r"file://.*/far/r: writing 010_data/.* failed|file://.*/far/r: .* failed"):
        Mirror(f"file://{tmp_path}/far/r").push_stage(run, stage_dir(r, run, "data"))


def test_a_login_in_a_url_and_two_urls_are_refused_and_out_may_be_one() -> None:
    actual = load_recipe(DEMO, ("out=s3://bucket/prefix",))
    assert (actual.out, actual.mirror) == (Path("runs"), "s3://bucket/prefix")
    assert recipe_from_dict(dump_recipe(actual), source="x") == actual
    for overrides, said in (
        (("out=s3://key:secret@bucket/x",), "credentials belong in the environment"),
        (("out=s3://a/x", "mirror=s3://b/x"), "give one URL"),
        (("mirror=bucket/x",), "is not a URL such as"),
    ):
        with pytest.raises(TagprError, match=said) as caught:
            load_recipe(DEMO, overrides)
        assert "secret@" not in str(caught.value) or "credentials" not in said


def test_fresh_removes_the_copy_too_and_a_run_elsewhere_is_not_taken_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/far"
    r = recipe(lambda raw: raw.update(name="demo", mirror=url))
    interrupted(RunDir(tmp_path / "elsewhere"), r, Mirror(f"{url}/demo"), at=1)
    calls: list[str] = []

    class Module:
        @staticmethod
        def run_pipeline(recipe: Recipe, run: RunDir, **_: object) -> None:
            calls.append(run.root.name)
            Mirror(f"{url}/demo").require_same_run(run)

    monkeypatch.setitem(sys.modules, "tagpr_rl.stages.pipeline", Module)  # type: ignore[arg-type]
    arguments = ["run", str(DEMO), f"mirror={url}", f"out={tmp_path}/here"]
    assert main(arguments) == 2
    assert "holds a run that is not the one in" in capsys.readouterr().err
    assert main([*arguments, "--fresh"]) == 0
    assert not (tmp_path / "far" / "demo").exists() and calls == ["demo", "demo"]


def test_resume_of_a_url_works_in_the_folder_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/far"
    interrupted(RunDir(tmp_path / "gone" / "r"), recipe(), Mirror(f"{url}/r"), at=2)
    runs: list[RunDir] = []

    class Module:
        @staticmethod
        def run_pipeline(r: Recipe, run: RunDir, **_: object) -> None:
            runs.append(run)
            for name in ("guided", "explore", "eval"):
                finish(r, run, name)

    monkeypatch.setitem(sys.modules, "tagpr_rl.stages.pipeline", Module)  # type: ignore[arg-type]
    assert main(["resume", f"{url}/r", "--out", str(tmp_path / "new")]) == 0
    assert runs == [RunDir(tmp_path / "new" / "r")]
    assert "after step 2 of 20" in capsys.readouterr().out
    assert main(["resume", str(tmp_path / "new" / "r"), "--out", str(tmp_path)]) == 2


def test_links_to_a_given_model_are_made_again_and_not_copied(tmp_path: Path) -> None:
    model, stage = tmp_path / "model", tmp_path / "stage"
    for folder in (model, stage / "hf", tmp_path / "far" / "hf"):
        folder.mkdir(parents=True)
    (model / "weights").write_text("w")
    (model / "chat_template.jinja").write_text("the model's")
    (stage / "hf" / "weights").symlink_to(model / "weights")
    (stage / "hf" / "chat_template.jinja").write_text("own")
    assert [path.name for path in mirror._files(stage)] == ["chat_template.jinja"]
    (tmp_path / "far" / "hf" / "chat_template.jinja").write_text("own")  # what the URL has
    mirror._link_model(tmp_path / "far" / "hf", model)
    assert (tmp_path / "far" / "hf" / "weights").read_text() == "w"
    assert (tmp_path / "far" / "hf" / "chat_template.jinja").read_text() == "own"
    mirror._link_model(tmp_path / "far" / "linked", model)
    assert (tmp_path / "far" / "linked").is_symlink()
