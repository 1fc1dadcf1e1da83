"""How the embedded world's users write: per task, a user's taste, profile items, questions and posterior.

A taste never shows in a question; it shows only in the user's profile. `posterior` reads the *texts* (not the
generator's hidden state), so the same function gives the answer distribution without a profile (`items=()`),
with the retrieved items, and with the whole profile. The prior over tastes is uniform in every task.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.data.world.words import (
    ACTS,
    DESKS,
    DIVISIVE,
    FIELD_OF,
    FIELDS,
    KIND_OF,
    LEVELS,
    OF_TWO_MINDS,
    PAPER_WORDS,
    PRODUCTS,
    RATER_KINDS,
    READING_OF,
    READINGS,
    STYLES,
    THEMES,
    TOPICS,
)

Fields = dict[str, str]
Answers = dict[str, float]
"""Answer text -> probability; sums to 1."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question text and its gold answer for one user."""

    input: str
    gold: str


class TaskRules(ABC):
    """The world's rules for one LaMP task."""

    task: str

    @abstractmethod
    def taste(self, rng: Random) -> Mapping[str, str]:
        """Draw one user's taste."""

    @abstractmethod
    def profile(self, rng: Random, taste: Mapping[str, str], n: int) -> list[Fields]:
        """Draw `n` profile items (LaMP's keys, without the id) that show the taste."""

    @abstractmethod
    def question(self, rng: Random, taste: Mapping[str, str], items: Sequence[Fields]) -> Question:
        """Draw a question that `items` lets a reader answer."""

    @abstractmethod
    def posterior(self, text: str, items: Sequence[Mapping[str, str]]) -> Answers:
        """Answer distribution for question `text` given these items, under a uniform prior over tastes."""


def _normalise(weights: Mapping[str, float]) -> Answers:
    total = sum(weights.values())
    assert total > 0, "the items contradict the world's rules"
    return {answer: weight / total for answer, weight in weights.items() if weight > 0}


def _uniform(answers: Sequence[str]) -> Answers:
    weights: Answers = {}
    for answer in answers:
        weights[answer] = weights.get(answer, 0.0) + 1.0
    return _normalise(weights)


class Citations(TaskRules):
    """LaMP_1: a user works in a main field and, with share `second_share` of the titles, in a second one."""

    task = "LaMP_1"
    second_share = 0.2

    def taste(self, rng: Random) -> Mapping[str, str]:
        main, second = rng.sample(list(FIELDS), 2)
        return {"main": main, "second": second}

    def profile(self, rng: Random, taste: Mapping[str, str], n: int) -> list[Fields]:
        items = []
        for _ in range(n):
            words = rng.sample(FIELDS[taste["second" if rng.random() < self.second_share else "main"]], 3)
            items.append({"title": " ".join(words[:2]), "abstract": " ".join(words[1:])})
        return items

    def question(self, rng: Random, taste: Mapping[str, str], items: Sequence[Fields]) -> Question:
        """One reference is of the user's main field (the gold), the other of any other field."""
        other_field = rng.choice([field for field in FIELDS if field != taste["main"]])
        gold = rng.choice(("[1]", "[2]"))
        fields = (taste["main"], other_field) if gold == "[1]" else (other_field, taste["main"])
        one, two = (" ".join(rng.sample(FIELDS[field], 2)) for field in fields)
        title = " ".join(rng.sample(PAPER_WORDS, 2))
        return Question(
            TASKS[self.task].make_input(title=title, first=one, second=two),
            gold,
        )

    @staticmethod
    def field_of(title: str) -> str:
        """The field of a title (all its words are of one field)."""
        return FIELD_OF[title.split()[0]]

    @staticmethod
    def references(text: str) -> tuple[str, str]:
        """The two candidate titles of a question."""
        match = re.search(r'\[1\]: "(.*)" \[2\]: "(.*)"$', text)
        assert match is not None, text
        return match[1], match[2]

    def posterior(self, text: str, items: Sequence[Mapping[str, str]]) -> Answers:
        """Sum over all (main, second) tastes with main = the candidate's field of the items' likelihood."""
        fields = [self.field_of(item["title"]) for item in items]
        weights = {}
        for answer, reference in zip(("[1]", "[2]"), self.references(text), strict=True):
            main = self.field_of(reference)
            chance = {main: 1 - self.second_share}
            seconds = [field for field in FIELDS if field != main]
            weights[answer] = sum(
                math.prod((chance | {second: self.second_share}).get(field, 0.0) for field in fields)
                for second in seconds
            )
        return _normalise(weights)


class Movies(TaskRules):
    """LaMP_2: a user sees each kind of movie in one of three ways, which decides the tag of every theme of it."""

    task = "LaMP_2"

    def taste(self, rng: Random) -> Mapping[str, str]:
        return {kind: rng.choice(READINGS) for kind in THEMES}

    @staticmethod
    def tag(theme: str, reading: str) -> str:
        """The tag of a theme for a user with this reading of its kind."""
        return THEMES[KIND_OF[theme]][theme][READINGS.index(reading)]

    def profile(self, rng: Random, taste: Mapping[str, str], n: int) -> list[Fields]:
        return [
            {"tag": self.tag(theme, taste[KIND_OF[theme]]), "description": f"{KIND_OF[theme]} {theme}"}
            for theme in rng.sample(list(KIND_OF), n)
        ]

    def question(self, rng: Random, taste: Mapping[str, str], items: Sequence[Fields]) -> Question:
        """A kind that the profile shows, and one of its themes, if possible one that the profile lacks."""
        themes = [self.theme_of(item["description"]) for item in items]
        kind = rng.choice([kind for kind in THEMES if any(KIND_OF[theme] == kind for theme in themes)])
        fresh = [theme for theme in THEMES[kind] if theme not in themes]
        theme = rng.choice(fresh or list(THEMES[kind]))
        text = TASKS[self.task].make_input(text=f"{kind} {theme}")
        return Question(text, self.tag(theme, taste[kind]))

    @staticmethod
    def theme_of(text: str) -> str:
        """The theme of a description or of a question (its last word)."""
        return text.split()[-1]

    def posterior(self, text: str, items: Sequence[Mapping[str, str]]) -> Answers:
        theme = self.theme_of(text)
        for item in items:
            if KIND_OF[self.theme_of(item["description"])] == KIND_OF[theme]:
                return {self.tag(theme, READING_OF[item["tag"]]): 1.0}
        return _uniform([self.tag(theme, reading) for reading in READINGS])


class Ratings(TaskRules):
    """LaMP_3: a review says how good a thing is; a generous user gives one more, a strict one one less.

    A share of the questions is about divisive things, whose scores are drawn at random (`OF_TWO_MINDS`).
    """

    task = "LaMP_3"
    divisive_share = 0.7

    def taste(self, rng: Random) -> Mapping[str, str]:
        return {"kind": rng.choice(list(RATER_KINDS))}

    @staticmethod
    def _review(rng: Random, word: str) -> str:
        return f"{rng.choice(PRODUCTS)} was {word}"

    def profile(self, rng: Random, taste: Mapping[str, str], n: int) -> list[Fields]:
        words = [rng.choice(list(LEVELS)) for _ in range(n)]
        more = RATER_KINDS[taste["kind"]]
        return [{"text": self._review(rng, word), "score": str(LEVELS[word] + more)} for word in words]

    def question(self, rng: Random, taste: Mapping[str, str], items: Sequence[Fields]) -> Question:
        if rng.random() < self.divisive_share:
            word = rng.choice(DIVISIVE)
            scores = OF_TWO_MINDS[taste["kind"]]
            (score,) = rng.choices(list(scores), weights=list(scores.values()))
        else:
            word = rng.choice(list(LEVELS))
            score = LEVELS[word] + RATER_KINDS[taste["kind"]]
        return Question(TASKS[self.task].make_input(text=self._review(rng, word)), str(score))

    @staticmethod
    def word_of(text: str) -> str:
        """The judging word of a review or of a question (its last word)."""
        return text.split()[-1]

    def kinds(self, items: Sequence[Mapping[str, str]]) -> list[str]:
        """The kinds of user who would have given all these scores."""
        return [
            kind
            for kind, more in RATER_KINDS.items()
            if all(LEVELS[self.word_of(item["text"])] + more == int(item["score"]) for item in items)
        ]

    @staticmethod
    def scores(word: str, kind: str) -> Mapping[int, float]:
        """Score -> probability that a user of this kind gives it to a thing of this word."""
        return OF_TWO_MINDS[kind] if word in DIVISIVE else {LEVELS[word] + RATER_KINDS[kind]: 1.0}

    def posterior(self, text: str, items: Sequence[Mapping[str, str]]) -> Answers:
        word = self.word_of(text)
        weights: Answers = {}
        for kind in self.kinds(items):
            for score, probability in self.scores(word, kind).items():
                weights[str(score)] = weights.get(str(score), 0.0) + probability
        return _normalise(weights)


class Headlines(TaskRules):
    """LaMP_4: a user has one headline style for each desk."""

    task = "LaMP_4"

    def taste(self, rng: Random) -> Mapping[str, str]:
        return {desk: rng.choice(list(STYLES)) for desk in DESKS}

    @staticmethod
    def write(style: str, topic: str, act: str) -> str:
        """The headline of an article in a style."""
        return " ".join(STYLES[style]).format(topic=topic, act=act)

    def profile(self, rng: Random, taste: Mapping[str, str], n: int) -> list[Fields]:
        """At most 8 topics and 4 acts occur, so that a question can have new ones."""
        topics, acts = rng.sample(TOPICS, 8), rng.sample(ACTS, 4)
        items = []
        for _ in range(n):
            desk, topic, act = rng.choice(DESKS), rng.choice(topics), rng.choice(acts)
            items.append({"title": self.write(taste[desk], topic, act), "text": f"{desk} {topic} {act}"})
        return items

    def question(self, rng: Random, taste: Mapping[str, str], items: Sequence[Fields]) -> Question:
        """The desk is one the profile shows. Topic and act are new to the profile: no gold sits in it verbatim."""
        words = {word for item in items for word in item["text"].split()}
        topic = rng.choice([word for word in TOPICS if word not in words])
        act = rng.choice([word for word in ACTS if word not in words])
        desk = rng.choice([desk for desk in DESKS if desk in words])
        return Question(
            TASKS[self.task].make_input(text=f"{desk} {topic} {act}"),
            self.write(taste[desk], topic, act),
        )

    @staticmethod
    def parts(text: str) -> tuple[str, str, str]:
        """(desk, topic, act) of an article or of a question (its last three words)."""
        desk, topic, act = text.split()[-3:]
        return desk, topic, act

    @staticmethod
    def style_of(title: str) -> str:
        """The style whose marker words a headline holds."""
        words = set(title.split())
        return max(STYLES, key=lambda style: len(words & set(STYLES[style])))

    def posterior(self, text: str, items: Sequence[Mapping[str, str]]) -> Answers:
        desk, topic, act = self.parts(text)
        for item in items:
            if self.parts(item["text"])[0] == desk:
                return {self.write(self.style_of(item["title"]), topic, act): 1.0}
        return _uniform([self.write(style, topic, act) for style in STYLES])


def world_rules() -> dict[str, TaskRules]:
    """The rules of every task of the world, by task name."""
    rules: tuple[TaskRules, ...] = (Citations(), Movies(), Ratings(), Headlines())
    return {rule.task: rule for rule in rules}


WORLD_TASKS: Final = ("LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4")
