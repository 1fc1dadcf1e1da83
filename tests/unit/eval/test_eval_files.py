"""`tagpr data` and `tagpr eval` through the command line: official files in, self-describing results out."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.cli import main
from tagpr_rl.data.lamp import load_folder, outputs_path, questions_path, write_lamp, write_predictions
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.controls import BASELINES, baseline_answers
from tagpr_rl.eval.predictions import MAX_MEMBER, ZIP_TASKS, read_answers, write_zip
from tagpr_rl.types import LampRecord, ProfileItem, TagprError


def record(task: str, key: str, user: str, gold: str, *items: dict[str, str]) -> LampRecord:
    blanks = {"title": "t", "first": "cat", "second": "dog"} if task == "LaMP_1" else {"text": f"film {key}"}
    profile = tuple(ProfileItem(f"{key}-{n}", fields) for n, fields in enumerate(items))
    return LampRecord(key, task, "dev", user, TASKS[task].make_input(**blanks), profile, gold)


def film(tag: str, text: str) -> dict[str, str]:
    return {"tag": tag, "description": text}


# Three items each: with two, BM25's idf of a word in one of them is 0, and the order says nothing.
MOVIES = [
    record("LaMP_2", "1", "a", "comedy", film("comedy", "film 1"), film("action", "x"), film("classic", "y")),
    record("LaMP_2", "2", "a", "comedy", film("action", "x"), film("action", "film 2"), film("comedy", "y")),
    record("LaMP_2", "3", "b", "action"),
]
TITLES = [
    record("LaMP_4", "1", "a", "The Gold", {"title": "The Gold", "text": "film 1"}),
    record("LaMP_4", "2", "b", "Two Cats", {"title": "No", "text": "film 2"}),
]


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    folder = tmp_path / "lamp"
    write_lamp(folder, "LaMP_2", "dev", MOVIES)
    write_lamp(folder, "LaMP_4", "dev", TITLES)
    return folder


def evaluate(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    out = tmp_path / "result.json"
    assert main(["eval", *map(str, arguments), "--out", str(out)]) == 0
    return dict(json.loads(out.read_text(encoding="utf-8")))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def golds(lamp: Path, task: str = "LaMP_2") -> Path:
    return outputs_path(lamp, task, "dev")


def test_a_predictions_file_of_another_system(tmp_path: Path, lamp: Path) -> None:
    preds = tmp_path / "other.json"
    outputs = [("3", "action"), (1, " comedy"), ("2", "<think>x</think>comedy")]
    preds.write_text(json.dumps({"task": "LaMP_2", "golds": [{"id": key, "output": text} for key, text in outputs]}))
    actual = evaluate(tmp_path, "--preds", preds, "--golds", golds(lamp))
    accuracy, f1 = actual["metrics"]
    # An answer counts as it stands: upstream cuts no thought off.
    assert (accuracy["name"], accuracy["value"]) == ("accuracy", pytest.approx(2 / 3))
    assert f1["value"] == pytest.approx((2 / 3 + 1) / 15)  # comedy: tp 1, fn 1; action: 1; 13 labels: 0
    assert (accuracy["direction"], accuracy["n"], accuracy["n_unparsable"]) == ("higher is better", 3, 1)
    assert actual["users"] == "unknown: each question counts as a user"
    assert actual["task_versions"]["LaMP_2"].startswith("movie tags, 15 labels")
    assert (actual["split"], actual["setting"], actual["n_users"], actual["strict_parse_rate"]) == (
        "dev",
        "unknown",
        3,
        None,
    )
    assert actual["files"]["LaMP_2"]["golds_sha256"] and actual["files"]["LaMP_2"]["predictions_sha256"]
    assert set(actual["code"]) == {"commit", "uncommitted_changes"}
    assert [actual[key] for key in ("prompt_sha256", "schema_sha256", "decoding")] == [None] * 3
    # The same texts as responses: what follows the thought counts, and parsing is reported.
    actual = evaluate(tmp_path, "--preds", preds, "--golds", golds(lamp), "--responses")
    assert actual["metrics"][0]["value"] == 1.0
    assert actual["strict_parse_rate"] == 0.0
    assert actual["schema_sha256"]


def test_what_would_be_scored_as_an_answer_and_may_be_none_is_said(
    tmp_path: Path, lamp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preds = tmp_path / "p.json"
    write_predictions(preds, "LaMP_2", {"1": "x</think>comedy", "2": "the user likes", "3": "action<|im_end|>"})
    evaluate(tmp_path, "--preds", preds, "--golds", golds(lamp), "--responses")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 texts close a <think> that they do not open; if the chat template opened it" in said
    assert "end tokens: 1 of 3 answers hold one" in said and "'action<|im_end|>'" in said


def test_files_written_from_responses_hold_what_was_scored(tmp_path: Path, lamp: Path) -> None:
    preds = tmp_path / "p.json"
    write_predictions(preds, "LaMP_2", {"1": "<think>x</think>comedy", "2": "<think>cut", "3": "action"})
    actual = evaluate(
        tmp_path, "--preds", preds, "--golds", golds(lamp), "--responses", "--write-preds", tmp_path / "w"
    )
    assert actual["truncated"] == pytest.approx(1 / 3)
    again = json.loads((tmp_path / "w" / "LaMP_2.json").read_text())
    assert {item["id"]: item["output"] for item in again["golds"]} == {"1": "comedy", "2": "", "3": "action"}


def test_questions_give_users_and_the_leak_filter(tmp_path: Path, lamp: Path) -> None:
    preds = tmp_path / "p.json"
    write_predictions(preds, "LaMP_4", {"1": "The Gold", "2": "Two Dogs"})
    actual = evaluate(
        tmp_path,
        "--preds",
        preds,
        "--golds",
        golds(lamp, "LaMP_4"),
        "--questions",
        questions_path(lamp, "LaMP_4", "dev"),
    )
    assert (actual["n_users"], actual["setting"], actual["n_leaks"]) == (2, "user", 1)
    assert [row["value"] for row in actual["metrics"]] == [0.75, 0.75]
    assert [(row["name"], row["value"], row["n"]) for row in actual["metrics_without_leaks"]] == [
        ("rouge-1", 0.5, 1),
        ("rouge-L", 0.5, 1),
    ]


def test_means_over_users_by_hand(tmp_path: Path, lamp: Path) -> None:
    # User a: 1 of 2 right, user b: 1 of 1.
    preds = tmp_path / "p.json"
    write_predictions(preds, "LaMP_2", {"1": "comedy", "2": "action", "3": "action"})
    actual = evaluate(
        tmp_path, "--preds", preds, "--golds", golds(lamp), "--questions", questions_path(lamp, "LaMP_2", "dev")
    )
    accuracy, f1 = actual["metrics"]
    assert (accuracy["value"], accuracy["user_macro"]) == (pytest.approx(2 / 3), 0.75)
    assert f1["user_macro"] is None


def test_root_mean_square_by_user(tmp_path: Path) -> None:
    # User a: errors 3, 4 -> sqrt(12.5); user b: 0.
    records = [
        record("LaMP_3", key, user, gold) for key, user, gold in (("1", "a", "5"), ("2", "a", "5"), ("3", "b", "1"))
    ]
    write_lamp(tmp_path, "LaMP_3", "dev", records)
    write_predictions(tmp_path / "p.json", "LaMP_3", {"1": "2", "2": "1", "3": "1"})
    files = ("--golds", golds(tmp_path, "LaMP_3"), "--questions", questions_path(tmp_path, "LaMP_3", "dev"))
    mae, rmse = evaluate(tmp_path, "--preds", tmp_path / "p.json", *files)["metrics"]
    assert (mae["value"], mae["user_macro"]) == (pytest.approx(7 / 3), 1.75)
    assert (rmse["value"], rmse["user_macro"]) == (pytest.approx(math.sqrt(25 / 3)), pytest.approx(math.sqrt(12.5) / 2))


def test_baselines_are_one_flag_away(tmp_path: Path, lamp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--golds", golds(lamp), "--questions", questions_path(lamp, "LaMP_2", "dev"))
    values = {}
    for name in BASELINES:
        more = ("--constant", "action") if name == "constant" else ()
        actual = evaluate(tmp_path, "--baseline", name, *files, *more, "--write-preds", tmp_path / name)
        values[name] = actual["metrics"][0]["value"]
        assert actual["baseline"]["name"] == name
        again = evaluate(tmp_path, "--preds", tmp_path / name / "LaMP_2.json", "--golds", golds(lamp))
        assert again["metrics"][0]["value"] == values[name]
    # majority: comedy, 2 of 3. nearest: film 1 -> comedy, film 2 -> action, no profile -> comedy.
    assert values["constant"] == pytest.approx(1 / 3)
    assert values["majority"] == pytest.approx(2 / 3)
    assert values["nearest"] == pytest.approx(1 / 3)
    assert (
        "the very golds it is scored on"
        in evaluate(tmp_path, "--baseline", "majority", *files)["baseline"]["learned_from"]
    )
    write_predictions(tmp_path / "train.json", "LaMP_2", {"8": "action"})
    actual = evaluate(tmp_path, "--baseline", "majority", *files, "--train-golds", tmp_path / "train.json")
    assert actual["metrics"][0]["value"] == pytest.approx(1 / 3)
    assert actual["baseline"]["learned_from"] == "training golds"
    capsys.readouterr()
    assert "needs profiles" in refused(capsys, "eval", "--baseline", "nearest", "--golds", golds(lamp))
    assert "needs its answer (--constant TEXT)" in refused(
        capsys, "eval", "--baseline", "constant", "--golds", golds(lamp)
    )
    assert "either --preds or --baseline" in refused(capsys, "eval", "--golds", golds(lamp))
    with pytest.raises(TagprError, match="baseline 'best' is not one of constant, majority, random, nearest"):
        baseline_answers("best", [], {})


def test_ids_must_be_the_same(tmp_path: Path, lamp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(tmp_path / "p.json", "LaMP_2", {"1": "comedy", "9": "x"})
    error = refused(capsys, "eval", "--preds", tmp_path / "p.json", "--golds", golds(lamp))
    assert "2 of 3 questions have no prediction: '2', '3'; 1 predictions belong to no gold: '9'" in error
    write_predictions(tmp_path / "p.json", "LaMP_2", {"1": "comedy", "2": "action"})
    error = refused(capsys, "eval", "--preds", tmp_path / "p.json", "--golds", golds(lamp))
    assert "1 of 3 questions have no prediction: '3'; predictions must" in error
    write_predictions(tmp_path / "p.json", "LaMP_4", {"1": "x", "2": "y"})
    error = refused(capsys, "eval", "--preds", tmp_path / "p.json", "--golds", golds(lamp))
    assert "golds of LaMP_2, predictions of LaMP_4" in error
    error = refused(
        capsys,
        "eval",
        "--baseline",
        "random",
        "--golds",
        golds(lamp),
        "--questions",
        questions_path(lamp, "LaMP_4", "dev"),
    )
    assert "LaMP_4 items" in error or "stand in one of them only" in error or "LaMP_2 items" in error


def all_seven(folder: Path) -> tuple[Path, Path]:
    """(golds zip, predictions zip) of the seven tasks with one question each, made with the standard library alone."""
    made = []
    for name in ("golds", "preds"):
        path = folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__MACOSX/x.json", "junk")
            for task in ZIP_TASKS:
                output = (TASKS[task].labels or ("a title",))[0]
                archive.writestr(
                    f"deep/{task}_{name}.json", json.dumps({"task": task, "golds": [{"id": "1", "output": output}]})
                )
        made.append(path)
    return made[0], made[1]


def test_the_zip_of_seven(tmp_path: Path) -> None:
    gold_zip, pred_zip = all_seven(tmp_path)
    actual = evaluate(tmp_path, "--preds", pred_zip, "--golds", gold_zip, "--write-zip", tmp_path / "again.zip")
    assert {(row["task"], row["name"]): row["value"] for row in actual["metrics"]} == {
        ("LaMP_1", "accuracy"): 1.0, ("LaMP_1", "f1"): 0.5, ("LaMP_2", "accuracy"): 1.0, ("LaMP_2", "f1"): 1 / 15,
        ("LaMP_3", "MAE"): 0.0, ("LaMP_3", "RMSE"): 0.0,
        **{(f"LaMP_{n}", name): 1.0 for n in (4, 5, 6, 7) for name in ("rouge-1", "rouge-L")},
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert archive.namelist() == [f"{task}.json" for task in ZIP_TASKS]
    assert {t: a.outputs for t, a in read_answers(tmp_path / "again.zip").items()} == {
        t: a.outputs for t, a in read_answers(pred_zip).items()
    }
    write_zip(tmp_path / "third.zip", read_answers(pred_zip).values())
    assert (tmp_path / "third.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()


def test_zips_that_are_not_whole(tmp_path: Path, lamp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TagprError, match="missing: LaMP_1, LaMP_3, LaMP_4, LaMP_5, LaMP_6, LaMP_7"):
        write_zip(tmp_path / "z.zip", read_answers(golds(lamp)).values())
    assert not (tmp_path / "z.zip").exists()
    path = tmp_path / "e.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "x")
    with pytest.raises(TagprError, match=r"the zip holds no \.json file"):
        read_answers(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.json", "b.json"):
            archive.writestr(name, golds(lamp).read_text())
    with pytest.raises(TagprError, match=r"member b\.json: LaMP_2 is in .* twice"):
        read_answers(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.json", '{"task": "LaMP_2", "golds": [')
    with pytest.raises(TagprError, match=r"member a\.json: broken JSON"):
        read_answers(path)
    path.write_bytes(path.read_bytes().replace(b"LaMP_2", b"LaMP_9"))  # the check sum no longer fits
    with pytest.raises(TagprError, match="the zip cannot be read: Bad CRC"):
        read_answers(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", " " * 2000)
    monkeypatch.setattr("tagpr_rl.eval.predictions.MAX_MEMBER", 1000)
    with pytest.raises(TagprError, match="2000 bytes unpacked"):
        read_answers(path)
    assert MAX_MEMBER > 10**8


def test_the_old_news_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"task": "LaMP_2", "golds": [{"id": "1", "output": "travel"}]}')
    actual = evaluate(tmp_path, "--preds", path, "--golds", path, "--task", "LaMP_2N")
    assert actual["metrics"][0]["task"] == "LaMP_2N" and actual["metrics"][0]["value"] == 1.0
    assert "expected LaMP_3" in refused(capsys, "eval", "--preds", path, "--golds", path, "--task", "LaMP_3")


def test_data_check_and_rank(tmp_path: Path, lamp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(lamp), "--json", str(tmp_path / "c.json")]) == 0
    said = capsys.readouterr().out
    assert "LaMP_2 dev (user split): 3 questions read, 0 entries refused, 2 user ids" in said
    assert "defect: gold stands in the user's own profile: 1 (id 1)" in said
    actual = json.loads((tmp_path / "c.json").read_text())
    assert [(row["task"], row["n_read"], row["setting"]) for row in actual] == [
        ("LaMP_2", 3, "user"),
        ("LaMP_4", 2, "user"),
    ]
    assert main(["data", "rank", str(lamp), "--out", str(tmp_path / "r")]) == 0
    assert json.loads((tmp_path / "r" / "LaMP_2.json").read_text()) == {
        "1": ["1-0", "1-2", "1-1"],
        "2": ["2-1", "2-2", "2-0"],
        "3": [],
    }
    assert "recency works on LaMP's time split only" in refused(
        capsys, "data", "rank", lamp, "--out", tmp_path / "r2", "--method", "recency"
    )
    assert not (tmp_path / "r2").exists()
    questions = questions_path(lamp, "LaMP_2", "dev")
    questions.write_text(questions.read_text().replace('"input"', '"inputs"', 1))
    assert main(["data", "check", str(lamp), "--tasks", "LaMP-2"]) == 1
    assert f"refused: {questions}: record 0 (id '1'): lacks input" in capsys.readouterr().out


def test_real_records_through_the_command_line(tmp_path: Path, lamp_real: Path) -> None:
    files = ("--golds", golds(lamp_real), "--questions", questions_path(lamp_real, "LaMP_2", "dev"))
    nearest = evaluate(tmp_path, "--baseline", "nearest", *files)
    majority = evaluate(tmp_path, "--baseline", "majority", *files)
    assert (nearest["n"], nearest["n_users"], nearest["n_unparsable"]) == (122, 44, 0)
    assert nearest["metrics"][0]["value"] > majority["metrics"][0]["value"] > 1 / 15
    assert len(load_folder(lamp_real, ["LaMP_2", "LaMP_4"], "dev")) == 243


def test_nothing_to_do_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, out = tmp_path / "empty", tmp_path / "rankings"
    empty.mkdir()
    assert "holds no folder of a task" in refused(capsys, "data", "rank", empty, "--out", out)
    assert "holds no folder of a task" in refused(capsys, "data", "rank", tmp_path / "none", "--out", out)
    assert not out.exists()
    assert "LaMP_2 stands twice" in refused(capsys, "data", "check", empty, "--tasks", "LaMP_2", "LaMP-2")
    assert "dev stands twice" in refused(capsys, "data", "check", empty, "--splits", "dev", "dev")
    (empty / "LaMP_2").mkdir()
    (empty / "LaMP_2/dev_questions.json.gz").write_bytes(b"")
    assert "its files are packed, first" in refused(capsys, "data", "check", empty)


def test_news_golds_that_call_themselves_lamp_2_need_their_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "news.json"
    write_predictions(path, "LaMP_2", {"1": "politics", "2": "sports"})
    error = refused(capsys, "eval", "--preds", path, "--golds", path)
    assert f"{path}: LaMP_2 gold of '1' is 'politics'" in error and "--task LaMP_2N" in error
    assert evaluate(tmp_path, "--preds", path, "--golds", path, "--task", "LaMP_2N")["metrics"][0]["value"] == 1.0


def test_the_result_says_what_was_resampled(tmp_path: Path, lamp: Path) -> None:
    write_predictions(tmp_path / "p.json", "LaMP_2", {"1": "comedy", "2": "comedy", "3": "comedy"})
    files = ("--preds", tmp_path / "p.json", "--golds", golds(lamp))
    actual = evaluate(tmp_path, *files)
    assert (actual["users"], actual["n_users"]) == ("unknown: each question counts as a user", 3)
    assert "over 3 questions, each counted as a user" in actual["interval"]
    questions = questions_path(lamp, "LaMP_2", "dev")
    actual = evaluate(tmp_path, *files, "--questions", questions)
    assert (actual["users"], actual["n_users"]) == ("user_id of the questions file", 2)
    assert "over 2 users with 3 questions" in actual["interval"]
    rows = json.loads(questions.read_text())
    for row in rows:
        del row["user_id"]
    rows[1]["profile"] = rows[0]["profile"]
    questions.write_text(json.dumps(rows))
    actual = evaluate(tmp_path, *files, "--questions", questions)
    assert actual["users"].startswith("the questions file has no user_id, so people are") and actual["n_users"] == 2
