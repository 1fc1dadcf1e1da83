"""The embedded world: determinism, disjoint users, exact ceilings against enumeration, retrieval, LaMP's files."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.data.lamp import load_folder, write_lamp
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.data.world.bounds import best_answer, best_headline, best_rating
from tagpr_rl.data.world.generate import WorldConfig, answers, ceilings, make_world
from tagpr_rl.data.world.rules import WORLD_TASKS, Citations, Headlines, Movies, Ratings, world_rules
from tagpr_rl.data.world.words import DIVISIVE, FIELDS, KIND_OF, READING_OF, STYLES, THEMES
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.reward.task import task_reward
from tagpr_rl.types import TagprError

SMALL = WorldConfig(seed=3, train_users=20, dev_users=15, time_users=6)


def test_same_seed_same_world_and_other_seed_other_users():
    assert make_world(SMALL) == make_world(SMALL)
    one, two = make_world(SMALL), make_world(replace(SMALL, seed=4))
    ids = [{r.user_id for split in ("train", "dev") for r in world.records(split)} for world in (one, two)]
    assert not ids[0] & ids[1]
    assert [r.input for r in one.records("dev")] != [r.input for r in two.records("dev")]


def test_a_bigger_world_keeps_the_users_of_the_smaller_one():
    big = make_world(replace(SMALL, train_users=40))
    assert [(r.input, r.gold) for r in big.records("train")[:160]] == [
        (r.input, r.gold) for r in make_world(SMALL).records("train")
    ]


def test_user_split_is_disjoint_and_balanced():
    world = make_world(SMALL)
    train, dev = world.records("train"), world.records("dev")
    assert not {r.user_id for r in train} & {r.user_id for r in dev}
    assert len(dev) == 15 * 8
    assert [len(world.records("dev", task=task)) for task in WORLD_TASKS] == [30] * 4
    every = [r.id for r in train + dev]
    assert len(set(every)) == len(every)
    assert all(8 <= len(r.profile) <= 12 for r in train + dev)


def test_time_split_has_the_same_users_and_later_items():
    world = make_world(SMALL)
    train, dev = world.records("train", "time"), world.records("dev", "time")
    assert {r.user_id for r in train} == {r.user_id for r in dev}
    for early, late in zip(train, dev, strict=True):
        assert (early.user_id, early.task) == (late.user_id, late.task)
        assert late.profile[: len(early.profile)] == early.profile
        dates = [item.date for item in late.profile]
        assert None not in dates
        assert dates == sorted(dates)
        assert rank(late, 1, "recency")[0] == late.profile[-1]


def test_the_same_question_has_other_golds_for_other_users():
    world = make_world(replace(SMALL, train_users=200))
    golds: dict[tuple[str, str], set[str]] = {}
    for record in world.records("train"):
        golds.setdefault((record.task, record.input), set()).add(str(record.gold))
    for task in ("LaMP_2", "LaMP_3"):
        assert any(len(actual) > 1 for (name, _), actual in golds.items() if name == task)


def test_word_lists_are_consistent():
    words = list(itertools.chain(*FIELDS.values()))
    assert len(set(words)) == 40
    assert len(KIND_OF) == 24
    tags = {tag for themes in THEMES.values() for tags in themes.values() for tag in tags}
    assert tags == set(TASKS["LaMP_2"].labels)
    for themes in THEMES.values():  # a tag is of one reading everywhere, so an item shows the reading
        for actual in themes.values():
            assert [READING_OF[tag] for tag in actual] == ["light", "dark", "deep"]
    markers = [word for style in STYLES.values() for word in style if "{" not in word]
    assert len(set(markers)) == len(markers)


@pytest.mark.parametrize("task", WORLD_TASKS)
def test_gold_is_possible_and_sure_with_the_profile(task):
    world = make_world(SMALL)
    for record in world.records("train", task=task):
        full = answers(record, record.profile)
        assert sum(full.values()) == pytest.approx(1)
        assert full[record.gold] > 0
        divisive = record.input.split()[-1] in DIVISIVE
        if task != "LaMP_1" and not divisive:  # a second field can outweigh the main one in LaMP_1
            assert full == {record.gold: 1.0}
        if divisive:
            assert sorted(full.values()) == pytest.approx([0.28, 0.3, 0.42])
        assert answers(record, ())[record.gold] < 0.6


def test_bm25_brings_the_items_that_decide():
    world = make_world(replace(SMALL, train_users=150))
    seen = ceilings(world.records("train"), lambda record: rank(record, 4))
    whole = ceilings(world.records("train"), lambda record: record.profile)
    assert seen["LaMP_2"] == 1.0
    assert seen["LaMP_1"] > 0.95 and seen["LaMP_4"] > 0.95
    assert 0.68 < seen["LaMP_3"] < 0.78  # seven tenths of the questions at .615, the others near 1
    assert all(whole[task] >= seen[task] - 0.01 for task in WORLD_TASKS)


def test_citation_posterior_by_hand():
    rules = Citations()
    text = TASKS["LaMP_1"].make_input(title="fast survey", first="image pixel", second="gene cell")
    items = [{"title": "image scene"}, {"title": "camera scene"}, {"title": "gene cell"}]
    # main = vision, second = biology: .8 * .8 * .2; main = biology, second = vision: .2 * .2 * .8; others: 0.
    assert rules.posterior(text, items)["[1]"] == pytest.approx(0.128 / (0.128 + 0.032))
    assert rules.posterior(text, []) == {"[1]": 0.5, "[2]": 0.5}


def test_blind_ceilings_by_hand():
    movie = TASKS["LaMP_2"].make_input(text="space android")
    assert best_answer("LaMP_2", Movies().posterior(movie, [])).score == pytest.approx(1 / 3)
    # Level 1: 1, 5, 1, 5 for the four kinds. Answers 1, 3 and 5 all get .5 on average.
    review = TASKS["LaMP_3"].make_input(text="soup was plain")
    # 4 or 2 with equal chance: answer 3 is one off, 1 - 1/3 for either.
    assert best_answer("LaMP_3", Ratings().posterior(review, [])).score == pytest.approx(2 / 3)
    # Two styles hold no common word; 3 of 6 hold the topic, 3 the act: "topic act" gets 2*1/(2+4) from each.
    article = TASKS["LaMP_4"].make_input(text="city farm moves")
    assert best_answer("LaMP_4", Headlines().posterior(article, [])).score == pytest.approx(1 / 3)


def test_the_likeliest_score_of_a_divisive_thing_is_not_the_best_answer_by_hand():
    review = TASKS["LaMP_3"].make_input(text="soup was odd")
    generous = [{"text": "tea was plain", "score": "4"}, {"text": "film was poor", "score": "3"}]
    spread = Ratings().posterior(review, generous)
    assert spread == pytest.approx({"5": 0.42, "2": 0.3, "1": 0.28})
    # Answer 5: .42 + 0 + 0. Answer 2: .42 * (1 - 3/4) + .3 + .28 * (1 - 1/4) = .105 + .3 + .21.
    assert max(spread, key=spread.get) == "5"
    best = best_answer("LaMP_3", spread)
    assert best.answer == "2"
    assert best.score == pytest.approx(0.615)
    assert sum(p * task_reward("LaMP_3", "5", y) for y, p in spread.items()) == pytest.approx(0.42)


def test_share_of_divisive_questions():
    world = make_world(replace(SMALL, train_users=400))
    requested = [r.input.split()[-1] in DIVISIVE for r in world.records("train", task="LaMP_3")]
    assert sum(requested) / len(requested) == pytest.approx(0.7, abs=0.05)
    assert not [
        i for r in world.records("train", task="LaMP_3") for i in r.profile if i.fields["text"].split()[-1] in DIVISIVE
    ]


def _enumerate_headline(golds: dict[str, float]) -> float:
    """Best expected reward over every text of distinct words of the golds, by brute force."""
    words = sorted({word for gold in golds for word in gold.split()})
    texts = (t for n in range(1, len(words) + 1) for t in itertools.permutations(words, n))
    return max(sum(p * task_reward("LaMP_4", " ".join(t), y) for y, p in golds.items()) for t in texts)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_best_headline_equals_brute_force(seed):
    rng = Random(seed)
    letters = ["alpha", "beta", "gamma", "delta"]  # one order for all golds
    golds = {}
    for _ in range(rng.randint(1, 3)):
        chosen = sorted(rng.sample(range(4), rng.randint(1, 3)))
        golds[" ".join(letters[i] for i in chosen)] = float(rng.randint(1, 5))
    golds = {y: p / sum(golds.values()) for y, p in golds.items()}
    best = best_headline(golds)
    assert best.score == pytest.approx(_enumerate_headline(golds))
    earned = sum(p * task_reward("LaMP_4", best.answer, y) for y, p in golds.items())
    assert earned == pytest.approx(best.score)


def test_best_headline_refuses_what_its_argument_does_not_cover():
    with pytest.raises(ValueError, match="repeats"):
        best_headline({"a a": 1.0})
    with pytest.raises(ValueError, match="cycle"):
        best_headline({"a b": 0.5, "b a": 0.5})


@given(st.dictionaries(st.sampled_from("12345"), st.integers(1, 9), min_size=1))
def test_best_rating_equals_enumeration_of_the_reward(weights):
    total = sum(weights.values())
    spread = {y: w / total for y, w in weights.items()}
    expected = max(sum(p * task_reward("LaMP_3", str(t), y) for y, p in spread.items()) for t in range(1, 6))
    assert best_rating(spread).score == pytest.approx(expected)


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_blind_ceiling_equals_enumeration_over_all_tastes(task):
    """Average the gold of one question over every taste (exactly), without the posterior's shortcut."""
    rules = world_rules()[task]
    record = make_world(SMALL).records("dev", task=task)[0]
    if task == "LaMP_2":
        theme = Movies.theme_of(record.input)
        golds = [Movies.tag(theme, reading) for reading in ("light", "dark", "deep")]
    else:
        record = next(r for r in make_world(SMALL).records("dev", task=task) if r.input.split()[-1] not in DIVISIVE)
        words = (("poor", "dull", "weak"), ("plain", "fair", "decent"), ("bright", "rich", "lovely"))
        (level,) = (i for i, level in enumerate(words, start=2) if record.input.split()[-1] in level)
        golds = [str(level + 1), str(level - 1)]
    candidates = TASKS[task].labels
    best = max(sum(Fraction(task_reward(task, c, y)) for y in golds) / len(golds) for c in candidates)
    assert best_answer(task, rules.posterior(record.input, [])).score == pytest.approx(float(best))


def test_the_world_survives_official_files_and_its_bounds_have_a_mean(tmp_path):
    world = make_world(SMALL)
    for setting, split in (("user", "train"), ("user", "dev"), ("time", "train"), ("time", "dev")):
        for task in WORLD_TASKS:
            write_lamp(tmp_path / setting, task, split, world.records(split, setting, task))
        loaded = load_folder(tmp_path / setting, WORLD_TASKS, split)
        assert sorted(loaded, key=lambda r: r.id) == sorted(world.records(split, setting), key=lambda r: r.id)
    blind, oracle = world.bounds("dev")["blind"], world.bounds("dev")["oracle"]
    assert blind["mean"] == pytest.approx(sum(blind[task] for task in WORLD_TASKS) / 4)
    assert blind["mean"] < 0.5 < 0.9 < oracle["mean"]


def test_a_split_that_the_world_does_not_have():
    with pytest.raises(TagprError, match=r"no user split 'test'"):
        make_world(SMALL).records("test")
