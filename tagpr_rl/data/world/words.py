"""The word lists of the embedded world: what its users read, watch, rate and write about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "vision": ("image", "pixel", "camera", "scene", "video"),
    "speech": ("voice", "accent", "phoneme", "audio", "speaker"),
    "biology": ("protein", "gene", "cell", "enzyme", "genome"),
    "robotics": ("robot", "gripper", "motor", "wheel", "sensor"),
    "security": ("cipher", "attack", "malware", "password", "firewall"),
    "networks": ("router", "packet", "wireless", "latency", "antenna"),
    "databases": ("query", "table", "index", "storage", "schema"),
    "physics": ("quantum", "photon", "plasma", "neutron", "laser"),
}
"""LaMP_1: research fields and the words of their titles; no word is in two fields."""

PAPER_WORDS: Final = ("robust", "fast", "deep", "survey", "modern", "open")
"""LaMP_1: words of the question's own title, which say nothing about the field."""

READINGS: Final = ("light", "dark", "deep")
"""LaMP_2: the ways in which a user can see movies of a kind."""

THEMES: Final[Mapping[str, Mapping[str, tuple[str, str, str]]]] = {
    "space": {
        "spaceship": ("action", "dystopia", "sci-fi"),
        "android": ("comedy", "psychology", "sci-fi"),
        "clone": ("fantasy", "twist ending", "thought-provoking"),
    },
    "magic": {
        "dragon": ("fantasy", "violence", "based on a book"),
        "wizard": ("classic", "dark comedy", "based on a book"),
        "dream": ("romance", "psychology", "thought-provoking"),
    },
    "crime": {
        "detective": ("classic", "twist ending", "true story"),
        "murder": ("comedy", "violence", "true story"),
        "heist": ("action", "twist ending", "social commentary"),
    },
    "family": {
        "wedding": ("romance", "dark comedy", "social commentary"),
        "memory": ("romance", "psychology", "based on a book"),
        "painter": ("classic", "psychology", "true story"),
    },
    "law": {
        "prison": ("action", "violence", "social commentary"),
        "gangster": ("classic", "violence", "true story"),
        "trial": ("comedy", "dark comedy", "thought-provoking"),
    },
    "power": {
        "dictator": ("comedy", "dystopia", "social commentary"),
        "virus": ("action", "dystopia", "sci-fi"),
        "factory": ("classic", "dystopia", "social commentary"),
    },
    "war": {
        "soldier": ("action", "violence", "true story"),
        "orphan": ("fantasy", "dark comedy", "based on a book"),
        "letters": ("romance", "twist ending", "based on a book"),
    },
    "stage": {
        "clown": ("comedy", "violence", "thought-provoking"),
        "funeral": ("comedy", "dark comedy", "thought-provoking"),
        "novelist": ("romance", "psychology", "based on a book"),
    },
}
"""LaMP_2: kind -> theme -> its tag under each of READINGS. A tag is of one reading everywhere."""

KIND_OF: Final[Mapping[str, str]] = {theme: kind for kind, themes in THEMES.items() for theme in themes}
"""LaMP_2: theme -> its kind."""
READING_OF: Final[Mapping[str, str]] = {
    tag: reading
    for themes in THEMES.values()
    for tags in themes.values()
    for tag, reading in zip(tags, READINGS, strict=True)
}
"""LaMP_2: tag -> the reading it is of."""

LEVELS: Final[Mapping[str, int]] = {
    "poor": 2,
    "dull": 2,
    "weak": 2,
    "plain": 3,
    "fair": 3,
    "decent": 3,
    "bright": 4,
    "rich": 4,
    "lovely": 4,
}
"""LaMP_3: words for how good a thing is, 2 to 4, before the user's own way of scoring."""

RATER_KINDS: Final[Mapping[str, int]] = {"generous": 1, "strict": -1}
"""LaMP_3: ways of scoring, and what each adds to a thing's level."""

DIVISIVE: Final = ("odd", "raw", "quirky", "daring")
"""LaMP_3: words for things that users are of two minds about. No history holds them."""

OF_TWO_MINDS: Final[Mapping[str, Mapping[int, float]]] = {
    "generous": {5: 0.42, 2: 0.30, 1: 0.28},
    "strict": {1: 0.42, 4: 0.30, 5: 0.28},
}
"""LaMP_3: how often each kind of user gives a divisive thing each score. The likeliest score is not the one of
highest expected reward: who imitates golds answers the first, who is rewarded for being near finds the second."""

PRODUCTS: Final = ("soup", "tea", "film", "song", "chair", "lamp", "hotel", "game")
"""LaMP_3: the things reviewed; they say nothing about the score."""

TOPICS: Final = (
    "river",
    "bridge",
    "school",
    "market",
    "train",
    "museum",
    "forest",
    "harbour",
    "farm",
    "stadium",
    "library",
    "tower",
)
ACTS: Final = ("reopens", "closes", "grows", "moves", "wins", "burns")
DESKS: Final = ("city", "world", "money")
"""LaMP_4: an article is a desk, a topic and an act; a user has one headline style for each desk."""

STYLES: Final[Mapping[str, tuple[str, ...]]] = {
    "question": ("why", "{topic}", "matters", "today"),
    "truth": ("the", "truth", "about", "{topic}"),
    "list": ("five", "lessons", "{topic}", "teaches"),
    "story": ("how", "it", "{act}", "again"),
    "alarm": ("breaking", "{act}", "right", "now"),
    "inside": ("inside", "what", "{act}", "means"),
}
"""LaMP_4: headline styles. No marker word is in two styles, and a headline holds the topic or the act, not
both, so that knowing the article alone does not give a good headline (bounds.py uses this too)."""

FIELD_OF: Final[Mapping[str, str]] = {word: field for field, words in FIELDS.items() for word in words}
"""LaMP_1: title word -> its field."""
