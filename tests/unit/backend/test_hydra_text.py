"""Texts reach verl's configuration as they are: quotes, backslashes, references of OmegaConf."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tagpr_rl.backend.trainer.overrides import as_hydra

PARSER = OverridesParser.create()


def read(text: str) -> str:
    (line,) = as_hydra({"key": text})
    config = OmegaConf.create({"key": PARSER.parse_override(line).value(), "x": "another value"})
    return str(OmegaConf.to_container(config, resolve=True)["key"])


@pytest.mark.parametrize(
    "text",
    [
        "/a b/c",
        r"a\b",
        "a\\",
        r"\\",
        "it's",
        r"\'",
        "${x}",
        r"\${x}",
        r"\\${x}'",
        "${oc.env:HOME}",
        "$HOME",
        "[1]",
        "null",
        "a=b,c",
    ],
)
def test_a_text_comes_back(text: str) -> None:
    assert read(text) == text


@given(st.text(alphabet="a$={}'\"\\ ,:[]~#\n\u00e9", max_size=12))
def test_any_text_comes_back(text: str) -> None:
    assert read(text) == text
