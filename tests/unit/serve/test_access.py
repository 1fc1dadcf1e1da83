"""Who may use a server: loopback, names that point at it, and the token."""

from __future__ import annotations

import pytest

from tagpr_rl.serve.access import VARIABLE, access, is_loopback
from tagpr_rl.types import TagprError

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    rules = access(host, {})
    assert is_loopback(host) and rules.token == "" and rules.lets_in("") and rules.bearer(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_another_address_needs_one(host: str) -> None:
    with pytest.raises(TagprError, match=f"export {VARIABLE}"):
        access(host, {})
    rules = access(host, {VARIABLE: TOKEN})
    assert rules.lets_in(TOKEN) and not rules.lets_in("") and not rules.lets_in(TOKEN[:-1] + "é")
    assert rules.bearer(f"Bearer {TOKEN}") and rules.bearer(f"bearer  {TOKEN}")
    assert not any(map(rules.bearer, (None, "", TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x")))


@pytest.mark.parametrize("token", ["short", " " + TOKEN, TOKEN + "\n", "x" * 15, "ü" * 20])
def test_a_weak_token_is_refused_on_loopback_too(token: str) -> None:
    with pytest.raises(TagprError, match=VARIABLE):
        access("127.0.0.1", {VARIABLE: token})


@pytest.mark.parametrize(
    "host, known",
    [
        ("127.0.0.1:8265", True), ("localhost:1", True), ("[::1]:80", True), ("localhost", True),
        ("evil.example", False), ("evil.example:8265", False), ("localhost.evil.example", False),
        ("127.0.0.1@evil.example", False), ("", False), (None, False), ("[::1", False), ("0.0.0.0:1", False),
    ],
)  # fmt: skip
def test_only_loopback_s_own_names_are_answered(host: str | None, known: bool) -> None:
    assert access("127.0.0.1", {}).knows(host) is known
    assert access("0.0.0.0", {VARIABLE: TOKEN}).knows(host)  # there the token decides
