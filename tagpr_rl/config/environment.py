"""What the shell's environment decides beside a recipe: proxies, temporary folders, variables that change numbers."""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Final

DECIDES: Final[Mapping[str, str]] = {
    "VLLM_*": "how vLLM computes and samples",
    "VERL_*": "how verl's trainers and engines work",
    "RAY_*": "how Ray starts and schedules",
    "NVIDIA_TF32_OVERRIDE": "the precision of products on GPUs",
    "TORCH_*": "how torch computes and compiles",
    "PYTORCH_*": "how torch uses memory",
    "CUBLAS_*": "whether products on GPUs are repeatable",
    "CUDA_VISIBLE_DEVICES": "which GPUs there are",
    "HF_ENDPOINT": "where models come from",
    "VLLM_USE_MODELSCOPE": "where models come from",
    "HF_HUB_OFFLINE": "whether models may be fetched",
    "TRANSFORMERS_OFFLINE": "whether models may be fetched",
    "PYTHONHASHSEED": "the order of sets",
    "LD_PRELOAD": "the code of every process",
}
"""Name or pattern of a variable -> what it decides. Both `tagpr doctor` and a run's environment.json name those set."""


def deciding(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are set and change what a run computes -> what they decide."""
    return {
        name: what
        for name in sorted(environment)
        if (what := next((DECIDES[p] for p in DECIDES if fnmatch.fnmatchcase(name, p)), "")) and environment[name]
    }


def proxy_of(url: str) -> str:
    """The proxy that the environment names for `url`, as "$http_proxy (host:port)"; "" if requests go direct."""
    parts = urllib.parse.urlsplit(url)
    if _is_loopback(parts.hostname or "") or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    for scheme in (parts.scheme, "all"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            if value := os.environ.get(name):
                # Without a scheme a value is no URL, and its login must not be shown either.
                return f"${name} ({value.rpartition('://')[2].rpartition('@')[2].rstrip('/')})"
    return ""


def proxy_hint(url: str) -> str:
    """What an error of a request to `url` should add: that a proxy stands between; "" if none does."""
    proxy = proxy_of(url)
    host = urllib.parse.urlsplit(url).hostname
    return f"; it went through the proxy of {proxy}, which may refuse it: add {host} to no_proxy" if proxy else ""


def go_direct(url: str) -> None:
    """Let this process's requests to `url` pass no proxy if it is an address of this machine.

    Proxies seldom reach the loopback address of whoever asks. Its host joins no_proxy, which every client reads.
    """
    host = urllib.parse.urlsplit(url).hostname or ""
    proxies = any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in os.environ)
    if not proxies or not _is_loopback(host):
        return
    hosts = [part for name in ("no_proxy", "NO_PROXY") for part in os.environ.get(name, "").split(",") if part.strip()]
    if host not in hosts:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*dict.fromkeys(hosts), host])


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
