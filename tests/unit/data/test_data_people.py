"""People are found in files without ids, over all splits; a folder's setting is looked at, not believed."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.cli import main
from tagpr_rl.data.lamp import load_folder, outputs_path, questions_path, splits_present, write_lamp
from tagpr_rl.data.people import link_users, require_setting, require_several_questions, set_aside, shared_people
from tagpr_rl.data.split import split_folder
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

LAMP_REAL = Path(os.environ.get("TAGPR_LAMP_REAL", Path(__file__).parents[3] / "../shared/data/lamp_real"))
REAL = os.environ.get("TAGPR_REAL", "")


def question(
    key: str, user: str, task: str = "LaMP_7", texts: str = "", split: str = "dev", year: int | None = None
) -> LampRecord:
    date = None if year is None else f"{year}-01-01"
    items = tuple(ProfileItem(f"{key}{n}", {"text": text}, date) for n, text in enumerate(texts))
    return LampRecord(key, task, split, user, TASKS["LaMP_7"].make_input(text="x"), items, "y")


def anonymous(key: str, texts: str, split: str = "dev", year: int | None = None) -> LampRecord:
    return question(key, key, texts=texts, split=split, year=year)


def test_questions_of_one_person_are_linked_by_their_profiles() -> None:
    # "2" shares 9 of 10 items with "1", "3" shares 9 of 10 with "2" (8 with "1"); "4" shares 1 of 3 with "1".
    records = [
        question("1", "1", texts="abcdefghij"),
        question("2", "2", texts="bcdefghijk"),
        question("3", "3", texts="cdefghijkl"),
        question("4", "4", texts="axy"),
        question("5", "u5", texts="abcdefghij", split="train"),  # the file names this user
        question("6", "6", texts=""),
        question("7", "7", texts=""),
        question("8", "8", task="LaMP_6", texts="abcdefghij"),  # another task
    ]
    linked = link_users(records)
    users = [record.user_id for record in linked]
    assert users[:3] == ["LaMP_7/dev/1"] * 3
    assert users[3:] == ["LaMP_7/dev/4", "u5", "LaMP_7/dev/6", "LaMP_7/dev/7", "LaMP_6/dev/8"]
    assert [replace(r, user_id="") for r in linked] == [replace(r, user_id="") for r in records]
    with pytest.raises(TagprError, match=r"min_overlap is 0\.2"):
        link_users(records, 0.2)


@pytest.mark.skipif(not LAMP_REAL.is_dir(), reason="real LaMP questions are not here (TAGPR_LAMP_REAL)")
def test_linking_finds_the_known_users_of_real_questions() -> None:
    known = load_folder(LAMP_REAL, ["LaMP_2", "LaMP_4"], "dev")
    linked = link_users([replace(record, user_id=record.id) for record in known])
    pairs = {(a.task, a.user_id, b.user_id) for a, b in zip(known, linked, strict=True)}
    # One-to-one: as many pairs as known users and as found users.
    assert len(pairs) == len({(r.task, r.user_id) for r in known}) == len({r.user_id for r in linked}) == 102


def test_a_small_profile_inside_a_large_one_is_another_person() -> None:
    # 3 of the small profile's 4 items are in the large one of 8: .75 of the smaller, .375 of the larger.
    small, large = anonymous("1", "abcx"), anonymous("2", "abcdefgh")
    assert len({r.user_id for r in link_users([small, large])}) == 2
    dated = [anonymous("1", "abcx", year=2018), anonymous("2", "abcdefgh", year=2018)]
    assert len({r.user_id for r in link_users(dated)}) == 1  # a time split's profile grows
    other_days = [anonymous("1", "abcx", year=2018), anonymous("2", "abcdefgh", year=2019)]
    assert len({r.user_id for r in link_users(other_days)}) == 2


def test_people_are_found_over_train_and_dev_and_ids_may_repeat() -> None:
    train = [anonymous("1", "abcde", "train"), anonymous("2", "vwxyz", "train")]
    dev = [anonymous("1", "ghijk"), anonymous("2", "bcdef")]  # id 1 is another person, id 2 is train's 1
    assert [r.user_id for r in link_users([*train, *dev])] == [
        "LaMP_7/train/1", "LaMP_7/train/2", "LaMP_7/dev/1", "LaMP_7/train/1",
    ]  # fmt: skip


def folder_of(tmp_path: Path, train: list[LampRecord], dev: list[LampRecord]) -> Path:
    write_lamp(tmp_path, "LaMP_7", "train", train)
    write_lamp(tmp_path, "LaMP_7", "dev", dev)
    return tmp_path


def divide(folder: Path, **choices: Any) -> Any:
    return split_folder(folder, ["LaMP_7"], 0.4, 0, **choices)


TRAIN = [anonymous(f"{n}", texts, "train") for n, texts in enumerate(("abcde", "fghij", "klmno", "pqrst"))]
DEV = [anonymous(f"{n}", texts) for n, texts in enumerate(("ABCDE", "FGHIJ", "KLMNO", "PQRST"))]


def test_a_person_on_both_sides_is_refused_with_name_and_may_be_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [*TRAIN, anonymous("9", "BCDEF", "train")], DEV)
    with pytest.raises(TagprError, match=r"1 people have questions in both train and dev \('LaMP_7/train/9'\)"):
        divide(folder)
    actual = divide(folder, skip_defective=1)
    assert [r.id for r in actual.train] == ["0", "1", "2", "3"] and not shared_people(actual.train, actual.held_out)
    assert "LaMP_7 train record '9'" in actual.skipped[0] and len(actual.skipped) == 1


def test_questions_of_one_person_in_train_get_one_user(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [*TRAIN, anonymous("9", "bcdef", "train")], DEV)
    assert Counter(r.user_id for r in divide(folder).train)["LaMP_7/train/0"] == 2


@pytest.mark.parametrize("year", [None, 2019])
def test_a_time_split_must_be_called_one(tmp_path: Path, year: int | None) -> None:
    train = [question(f"{n}", f"u{n}", texts="abc", split="train", year=year) for n in range(6)]
    dev = [question(f"1{n}", f"u{n}", texts="abcd", year=year) for n in range(6)]
    folder = folder_of(tmp_path, train, dev)
    with pytest.raises(TagprError, match=r"6 of 6 people of dev \('u0', .* and 1 more\).*Set data.split: time"):
        divide(folder)
    assert len(divide(folder, setting="time").train) == 6
    # Without ids too: the people are the same six.
    bare = [replace(r, user_id=r.id, profile=tuple(replace(i, fields={"text": f"{r.user_id} {i.fields['text']}"})
            for i in r.profile)) for r in (*train, *dev)]  # fmt: skip
    linked = link_users(bare)
    with pytest.raises(TagprError, match="6 of 6 people of dev"):
        require_setting(linked[:6], linked[6:], "user", "x")


def test_a_user_may_have_a_question_s_id(tmp_path: Path) -> None:
    # The file names two users, "0" and "1", and asks "0" the questions "0" and "1": ids that meet by chance.
    train = [question(str(n), str(n // 2), texts="abcdefgh"[n:], split="train") for n in range(4)]
    assert [r.user_id for r in link_users(train)] == ["0", "0", "1", "1"]
    folder = folder_of(tmp_path, train, [replace(record, split="dev") for record in train])
    assert [r.user_id for r in load_folder(folder, ["LaMP_7"], "train")] == ["0", "0", "1", "1"]
    assert {r.user_id for r in divide(folder, setting="time").held_out} == {"0", "1"}


def test_people_of_files_with_and_without_ids_cannot_be_compared(tmp_path: Path) -> None:
    named = [replace(record, user_id=f"u{record.id}") for record in TRAIN]
    with pytest.raises(TagprError, match="LaMP_7's train questions have a user_id and its dev questions have none"):
        divide(folder_of(tmp_path, named, DEV))
    rows = json.loads(questions_path(tmp_path, "LaMP_7", "train").read_text())
    rows[2]["user_id"] = None
    questions_path(tmp_path, "LaMP_7", "train").write_text(json.dumps(rows))
    with pytest.raises(TagprError, match=r"record 2 \(id '2'\): has no user_id, unlike the questions before it"):
        load_folder(tmp_path, ["LaMP_7"], "train")


def test_a_few_people_in_both_halves_make_no_time_split(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [*TRAIN, anonymous("9", "BCDEF", "train")], DEV)
    with pytest.raises(TagprError, match=r"1 of the 4 people of dev have questions in train: .* Set data.split: user"):
        divide(folder, setting="time")


def test_a_user_split_is_no_time_split(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TRAIN, DEV)
    with pytest.raises(
        TagprError, match=r"no profile item has a date and none of the 4 people .* Set data.split: user"
    ):
        divide(folder, setting="time")
    dated = [replace(r, profile=tuple(replace(i, date="2019-01-01") for i in r.profile)) for r in TRAIN]
    with pytest.raises(TagprError, match="profile items have dates: these are files of a time split"):
        divide(folder_of(tmp_path, dated, DEV))
    questions_path(tmp_path, "LaMP_7", "dev").unlink()
    with pytest.raises(TagprError, match="needs train and dev files"):
        divide(folder, setting="time")


def test_a_vector_for_each_user_needs_several_questions_of_a_user() -> None:
    require_several_questions([question("1", "u"), question("2", "u"), question("3", "v")], "stages.prmu")
    with pytest.raises(TagprError, match=r"2 of 3 training users \('v', 'w'\) have one question.*identity: false"):
        require_several_questions([question(f"{n}", user) for n, user in enumerate("uuvw")], "stages.prmu")


def test_missing_outputs_stop_a_folder_with_both_splits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TRAIN, DEV)
    outputs_path(tmp_path, "LaMP_7", "dev").unlink()
    with pytest.raises(TagprError, match=r"dev_outputs.json: no such file, so the questions .* have no gold"):
        divide(folder)


def spoil(path: Path, change: Any) -> None:
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_defective_records_are_left_out_up_to_a_number_and_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [*TRAIN, anonymous("8", "uvw", "train"), anonymous("9", "xyz", "train")], DEV)

    def change(rows: list[Any]) -> None:
        rows[0]["input"] = "no mark"  # no query
        del rows[1]["id"]  # its gold has no question then: one defect, not two
        rows[2]["profile"][1] = {"id": "1"}  # an item without a text

    def lose(value: Any) -> None:
        del value["golds"][3]["id"]  # the same the other way round
        value["golds"][4]["output"] = " "

    spoil(questions_path(folder, "LaMP_7", "train"), change)
    spoil(outputs_path(folder, "LaMP_7", "train"), lose)
    with pytest.raises(TagprError, match=r"5 records are defective, and data.skip_defective leaves out at most 4"):
        divide(folder, query=True, skip_defective=4)
    actual = divide(folder, query=True, skip_defective=5)
    assert [r.id for r in actual.train] == ["9"]
    for said, named in zip(actual.skipped, ("'0'", "record 1", "id '2'", "id '3'", "'8'"), strict=True):
        assert named in said
    assert [r.id for r in divide(folder, skip_defective=4).train] == ["0", "9"]  # nothing is retrieved for: no query


def test_run_rank_and_check_agree_on_a_question_without_query(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    folder = folder_of(tmp_path / "lamp", TRAIN, DEV)
    spoil(questions_path(folder, "LaMP_7", "dev"), lambda rows: rows[1].update(input="no mark"))
    recipe = ["recipes/smoke.yaml", f"data.lamp_dir={folder}", "data.tasks=[LaMP_7]"]
    command = ["run", *recipe, f"out={tmp_path / 'runs'}", "name=case", "--until", "data"]
    assert main(command) == 2
    assert "LaMP_7 record '1': input has no ':'" in capsys.readouterr().err
    command.append("data.skip_defective=1")
    assert main([*command, "stages.prmu.identity=true"]) == 2  # everyone has one question
    assert "stages.prmu: a learned vector for each user, but 4 of 4 training users" in capsys.readouterr().err
    assert main(command) == 0
    [facts] = (tmp_path / "runs" / "case").glob("*_data/data.json")
    assert ["LaMP_7 record '1'" in fault for fault in json.loads(facts.read_text())["skipped"]] == [True]
    [manifest] = (tmp_path / "runs" / "case").glob("*_data/manifest.json")
    assert "LaMP_7 record '1'" in json.loads(manifest.read_text())["notes"][0]
    capsys.readouterr()
    assert main(["data", "check", str(folder), "--splits", "dev"]) == 1
    assert "data.skip_defective: 1 leaves the refused records out" in capsys.readouterr().out
    rank = ["data", "rank", str(folder), "--out", str(tmp_path / "rankings")]
    assert main(rank) == 2
    capsys.readouterr()
    assert main([*rank, "--skip-defective", "1"]) == 0
    assert "3 questions ranked" in capsys.readouterr().out


@pytest.mark.skipif(not REAL, reason="no folder of real questions (TAGPR_REAL)")
def test_the_people_of_real_files_are_found_without_their_ids() -> None:
    for folder in Path(REAL).iterdir():
        for task in (task for task in TASKS if {"train", "dev"} <= set(splits_present(folder, task))):
            known = [r for split in ("train", "dev") for r in load_folder(folder, [task], split)]
            linked = link_users([replace(record, user_id=record.id) for record in known])
            pairs = {(a.user_id, b.user_id) for a, b in zip(known, linked, strict=True)}
            assert len(pairs) == len({r.user_id for r in known}) == len({r.user_id for r in linked}), (folder, task)


def test_users_are_set_aside_whole_whatever_the_order() -> None:
    records = [record for user in range(10) for record in (made(f"{user}a", user), made(f"{user}b", user))]
    rest, aside = set_aside(records, 0.3)
    users = {r.user_id for r in aside}
    assert len(users) == 3 and len(aside) == 6 and len(rest) == 14 and not users & {r.user_id for r in rest}
    again = set_aside(records[::-1], 0.3)[1]
    assert {r.id for r in again} == {r.id for r in aside}
    assert set_aside(records, 0.0) == (records, [])
    assert len({r.user_id for r in set_aside(records, 0.01)[1]}) == 1
    with pytest.raises(TagprError, match="10 of 10 training users"):
        set_aside(records, 0.99)


def made(key: str, user: int) -> LampRecord:
    return LampRecord(key, "LaMP_2", "train", f"u{user}", "q", (), "comedy")
