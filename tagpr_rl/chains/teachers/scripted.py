"""The teacher of the embedded world. It knows the world's rules and reads only what the prompt shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from tagpr_rl.chains.client.chat import Reply
from tagpr_rl.chains.teachers.interface import TeacherRequest
from tagpr_rl.data.world.rules import Citations, Headlines, Movies, Ratings
from tagpr_rl.data.world.words import KIND_OF, LEVELS, RATER_KINDS, READING_OF, READINGS, STYLES
from tagpr_rl.types import TagprError

Items = Sequence[Mapping[str, str]]
EMPTY = "the history is empty"


class ScriptedTeacher:
    """Writes a chain of four or five lines and an answer for a question of the world.

    With probability `error_rate` it draws a wrong conclusion on purpose and continues consistently. The draw
    depends only on the seed, the record, the items shown and the number of the sample.
    """

    name = "scripted"
    prompts: Mapping[str, str] = {}

    def __init__(self, *, error_rate: float = 0.0, seed: int = 0) -> None:
        if not 0 <= error_rate <= 1:
            raise TagprError(f"teacher.error_rate is {error_rate!r}: use [0, 1]")
        self.error_rate = error_rate
        self.seed = seed
        self._writers = {
            "LaMP_1": self._citation,
            "LaMP_2": self._movie,
            "LaMP_3": self._rating,
            "LaMP_4": self._headline,
        }

    def generate(self, requests: Sequence[TeacherRequest]) -> list[Reply]:
        """One chain per request. TagprError for a task that the world does not have."""
        return [Reply(self._one(request)) for request in requests]

    def _one(self, request: TeacherRequest) -> str:
        record = request.record
        if record.task not in self._writers:
            raise TagprError(
                f"record {record.id!r}: the scripted teacher knows {', '.join(self._writers)}, not {record.task}; "
                "use the heuristic teacher"
            )
        rng = Random(f"{self.seed}/{record.id}/{request.sample}/{','.join(request.prompt.item_ids)}")
        items = [item.fields for item in request.items]
        wrong = rng.random() < self.error_rate
        steps, answer = self._writers[record.task](record.input, items, wrong, rng)
        return "\n".join([*steps, f"Answer: {answer}"])

    def _pick(self, good: Sequence[str], all_: Sequence[str], wrong: bool, rng: Random) -> str:
        """One of the good conclusions; if `wrong`, one of the others, provided that there are any."""
        bad = [c for c in all_ if c not in good]
        return rng.choice(bad) if wrong and bad else rng.choice(list(good))

    def _citation(self, text: str, items: Items, wrong: bool, rng: Random) -> tuple[list[str], str]:
        first, second = (Citations.field_of(title) for title in Citations.references(text))
        seen = [(item["title"].split()[0], Citations.field_of(item["title"])) for item in items]
        # The more frequent field is the more probable main one, whatever the share of the second field.
        count = {answer: sum(f == own for _, f in seen) for answer, own in (("[1]", first), ("[2]", second))}
        good = [answer for answer, n in count.items() if n == max(count.values())]
        answer = self._pick(good, ("[1]", "[2]"), wrong, rng)
        field, other = (first, second) if answer == "[1]" else (second, first)
        steps = [f"the user wrote {', '.join(word for word, _ in seen)}" if seen else EMPTY]
        if {first, second} <= {f for _, f in seen}:
            steps.append(f"{field} is there more often than {other}")
        # The options last: a tiny model binds a field to its number over a short distance only.
        options = f"the question has {first} [1] and {second} [2]"
        return [*steps, f"the user prefers {field}", options, f"so {field} {answer} fits"], answer

    def _movie(self, text: str, items: Items, wrong: bool, rng: Random) -> tuple[list[str], str]:
        theme = Movies.theme_of(text)
        kind = KIND_OF[theme]
        seen = [(Movies.theme_of(item["description"]), item["tag"]) for item in items]
        same_kind = [(other, tag) for other, tag in seen if KIND_OF[other] == kind]
        good = [READING_OF[tag] for _, tag in same_kind[:1]] or list(READINGS)
        reading = self._pick(good, READINGS, wrong, rng)
        tag = Movies.tag(theme, reading)
        if same_kind:
            shown = f"the user tagged {kind} {same_kind[0][0]} as {same_kind[0][1]}"
        else:
            shown = f"the history has no {kind}" if items else EMPTY
        return [
            f"the question is about {kind} {theme}",
            shown,
            f"the user prefers {reading} {kind} movies",
            f"so {reading} {theme} is {tag}",
        ], tag

    def _rating(self, text: str, items: Items, wrong: bool, rng: Random) -> tuple[list[str], str]:
        word = Ratings.word_of(text)
        kind = self._pick(Ratings().kinds(items), list(RATER_KINDS), wrong, rng)
        scores = Ratings.scores(word, kind)
        (score,) = rng.choices([str(score) for score in scores], weights=list(scores.values()))
        examples: dict[int, str] = {}
        for item in items:
            seen = Ratings.word_of(item["text"])
            examples.setdefault(LEVELS[seen], f"{item['score']} for {seen}")
        return [
            f"the question is about {word}",
            f"the user gave {', '.join(list(examples.values())[:3])}" if examples else EMPTY,
            f"the user prefers {kind} scores",
            f"so {word} gets {score}",
        ], score

    def _headline(self, text: str, items: Items, wrong: bool, rng: Random) -> tuple[list[str], str]:
        desk, topic, act = Headlines.parts(text)
        titles = [item["title"] for item in items if Headlines.parts(item["text"])[0] == desk]
        styles = [Headlines.style_of(title) for title in titles]
        style = self._pick(styles[:1] or list(STYLES), list(STYLES), wrong, rng)
        if titles:
            seen = f"the user wrote for {desk} {titles[0]}"
        else:
            seen = f"the history has no {desk}" if items else EMPTY
        part = topic if "{topic}" in STYLES[style] else act
        return [
            f"the question is about {desk} {topic} {act}",
            seen,
            f"the user prefers a {style} headline",
            f"so it has {part}",
        ], Headlines.write(style, topic, act)
