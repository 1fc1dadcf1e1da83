"""The shell's environment: a proxy is named where it stands between, and never between this machine and itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chat_server import log_of, serving
from refusing_proxy import refusing_proxy

from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import ChatRequest, Reply
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.config.endpoints import EndpointBlock
from tagpr_rl.config.environment import deciding, go_direct, proxy_hint, proxy_of
from tagpr_rl.data import download
from tagpr_rl.types import TagprError

NAMES = [f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "")  # so that what a test adds is undone
            monkeypatch.delenv(spelling)


def ask(url: str, path: Path) -> Reply:
    retries = {"times": 1, "first_wait_s": 0.01}
    block = EndpointBlock.model_validate({"kind": "openai", "base_url": url, "model": "m", "retries": retries})
    with AnswerCache(path) as cache:
        generator = OpenAIGenerator(block, cache, account="p")
        return generator.generate([ChatRequest(({"role": "user", "content": "question #1"},))])[0]


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_loopback_goes_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    with refusing_proxy() as (proxy, lines), serving() as url:
        monkeypatch.setenv(name, proxy)
        assert ask(url, tmp_path / "a").status == "OK"
        assert lines == [] and len(log_of(url)["times"]) == 1
    assert os.environ["no_proxy"] == "intranet,127.0.0.1" == os.environ["NO_PROXY"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_refuses_is_named_and_not_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, status: int
) -> None:
    """For https the proxy refuses the tunnel, for http the request itself."""
    with refusing_proxy(status) as (proxy, lines):
        monkeypatch.setenv(f"{scheme}_proxy", proxy.replace("//", "//me:secret@"))
        try:
            text = ask(f"{scheme}://teacher.example/v1", tmp_path / "a").detail
        except TagprError as error:
            text = str(error)
        assert lines and f"${scheme}_proxy ({proxy.removeprefix('http://')})" in text
        assert "add teacher.example to no_proxy" in text and "accept the key" not in text and "secret" not in text
        assert len(lines) == (2 if status == 502 else 1)  # a bad gateway is worth another attempt


def test_a_download_names_the_proxy_and_loopback_goes_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_proxy() as (proxy, lines):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(TagprError, match=r"403.*\$http_proxy \(127\.0\.0\.1:\d+\)"):
            download.fetch("http://lamp.example/x.json", tmp_path / "x", "LaMP_2", "dev", say=print, pause_s=0.0)
        assert len(lines) == 1
        with refusing_proxy(404) as (server, seen), pytest.raises(TagprError, match="404") as caught:
            download.fetch(f"{server}/x.json", tmp_path / "x", "LaMP_2", "dev", say=print, pause_s=0.0)
        assert len(lines) == 1 and len(seen) == 1 and "proxy" not in str(caught.value)


def test_proxies_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://u:p@proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("https://api.example/v1") == "$https_proxy (proxy:3128)"
    monkeypatch.setenv("https_proxy", "u:p@proxy:3128")
    assert proxy_of("https://api.example/v1") == "$https_proxy (proxy:3128)"
    assert [proxy_of(url) for url in ("http://api.example", "https://a.inside.example", "https://127.0.0.5:1")] == [
        ""
    ] * 3
    assert proxy_hint("http://api.example") == ""
    go_direct("https://api.example/v1")
    assert os.environ["no_proxy"] == "inside.example"
    for url in ("http://127.0.0.5:1", "http://[::1]:2", "http://localhost:8000/v1", "http://localhost:8000"):
        go_direct(url)
    assert os.environ["no_proxy"] == "inside.example,127.0.0.5,::1,localhost"


def test_variables_that_change_numbers_are_listed() -> None:
    shell = {"VLLM_USE_V1": "0", "PATH": "/bin", "RAY_ADDRESS": "", "NVIDIA_TF32_OVERRIDE": "0"}
    assert list(deciding(shell)) == ["NVIDIA_TF32_OVERRIDE", "VLLM_USE_V1"]
