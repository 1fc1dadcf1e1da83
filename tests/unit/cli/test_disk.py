"""Targets are looked at before any work, and errors of the file system name the file and the option."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tagpr_rl import files
from tagpr_rl.cli import main
from tagpr_rl.cli.disk import disk_error
from tagpr_rl.files import content_sha256, sha256_file, target_mistake

OUT = (
    ["eval", "--golds", "none.json", "--preds", "none.json", "--out"],
    ["eval", "--golds", "none.json", "--preds", "none.json", "--write-zip"],
    ["data", "check", "none", "--json"],
    ["compare", "none", "none", "--out"],
)
FOLDERS = (
    ["eval", "--golds", "none.json", "--preds", "none.json", "--write-preds"],
    ["data", "rank", "none", "--out"],
    ["export", "none", "--stage", "sft", "--out"],
    ["chains", "card", "none", "--out"],
    ["chains", "discover", "none", "--out"],
    ["cluster", "render", "demo", "--target", "slurm", "--out"],
    ["resume", "s3://none/x", "--out"],
)


@pytest.mark.parametrize("words", [*OUT, *FOLDERS], ids=lambda words: f"{words[0]} {words[1]} {words[-1]}")
def test_a_target_that_cannot_be_written_is_refused_before_anything_is_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    wrong = {f"{file}/x": "Not a directory", f"{tmp_path}/{'n' * 300}": "255 bytes", "$HOME/x": "is no path"}
    wrong |= {str(tmp_path): "is a folder"} if words in OUT else {str(file): "is a file"}
    for target, part in wrong.items():
        assert main([*words, target]) == 2
        error = capsys.readouterr().err
        assert part in error and words[-1] in error and error.startswith("error: ")
    assert file.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_device_is_never_replaced() -> None:
    assert target_mistake(Path("/dev/null"), folder=False) == "/dev/null is no ordinary file"


def test_a_file_that_can_be_written_has_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    for path, folder in ((tmp_path / "old", False), (tmp_path / "a/b/new", False), (tmp_path / "a/b", True)):
        assert target_mistake(path, folder=folder) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_remedy_names_the_word_that_the_file_was_given_with(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/x/y")
    for words, remedy in (
        (["eval", "--out", f"{tmp_path}/x"], "choose another with --out"),
        (["run", "demo", f"out={tmp_path}"], "choose another with out=<folder>"),
        (["run", "demo", f"data.lamp_dir={tmp_path}/x"], "choose another with data.lamp_dir"),
        (["status", f"{tmp_path}/x"], f"it was given as {tmp_path}/x"),
    ):
        assert disk_error(full, words) == f"cannot use {tmp_path}/x/y: no space is left; free some; {remedy}"


def test_an_error_inside_another_is_found_and_a_socket_s_is_none() -> None:
    class SafetensorError(Exception):
        pass

    outer = RuntimeError("stage failed")
    outer.__cause__ = SafetensorError("I/O error: No space left on device (os error 28)")
    assert "no space is left" in (disk_error(outer, []) or "")
    wrapped = RuntimeError("ray")
    wrapped.cause = OSError(errno.EDQUOT, "Quota", "/q")  # type: ignore[attr-defined]
    assert "cannot use /q: the disk quota" in (disk_error(wrapped, []) or "")
    assert disk_error(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), []) is None
    assert disk_error(ValueError("No space left"), []) is None


def test_missing_predictions_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(name: str, *ids: str) -> str:
        golds = [{"id": key, "output": "5"} for key in ids]
        (tmp_path / name).write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
        return str(tmp_path / name)

    golds, few, many = answers("g.json", "1", "2"), answers("p.json", "1"), answers("q.json", "1", "2", "3")
    assert main(["eval", "--preds", few, "--golds", golds]) == 2
    assert "1 of 2 questions have no prediction: '2'; predictions must" in capsys.readouterr().err
    assert main(["eval", "--preds", many, "--golds", golds]) == 2
    assert "1 predictions belong to no gold: '3'; predictions must" in capsys.readouterr().err
    assert main(["eval", "--preds", few, few, "--golds", golds]) == 2
    assert "stands twice" in capsys.readouterr().err


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "CACHED_FROM_BYTES", 10)
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes(100))
    reads: list[Path] = []
    monkeypatch.setattr(files, "sha256_file", lambda p: reads.append(p) or sha256_file(p))
    first = content_sha256(path)
    assert content_sha256(path) == first == sha256_file(path) and len(reads) == 1
    stamp = path.stat()
    with path.open("r+b") as handle:  # in place, same size, and the time stamp is set back
        handle.seek(50)
        handle.write(b"other")
    files.os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert content_sha256(path) == sha256_file(path) != first and len(reads) == 2


def test_a_full_disk_names_the_file_and_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    target = tmp_path / "a.json"
    with pytest.raises(OSError) as caught:
        files.write_text(target, "x")
    message = disk_error(caught.value, ["eval", "--out", str(target)])
    assert message == f"cannot use {target}: no space is left; free some; choose another with --out"
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_folder_a_large_file_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("abc")
    monkeypatch.setattr(files, "CACHED_FROM_BYTES", 1)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert content_sha256(tmp_path / "x") == sha256_file(tmp_path / "x") and len(list(tmp_path.iterdir())) == 1


def test_a_working_directory_that_is_gone_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["plan", "nope.yaml"]) == 2
    assert "the working directory is gone" in capsys.readouterr().err


def test_a_zip_that_cannot_be_written_leaves_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golds, out = tmp_path / "golds.json", tmp_path / "out.json"
    golds.write_text(json.dumps({"task": "LaMP_3", "golds": [{"id": "1", "output": "5"}]}))
    line = ["eval", "--golds", str(golds), "--preds", str(golds), "--out", str(out)]
    assert main([*line, "--write-zip", str(tmp_path / "z.zip")]) == 2
    assert "missing: LaMP_1, LaMP_2, LaMP_4" in capsys.readouterr().err and not out.exists()
    assert main(["eval", "--golds", str(tmp_path), "--preds", str(golds)]) == 2
    assert f"{tmp_path}: it is a folder" in capsys.readouterr().err
