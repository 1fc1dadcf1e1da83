"""What the run talks to: keys in the environment, language models, the Ray cluster, the mirror, another run."""

from __future__ import annotations

import importlib.util
import netrc
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tagpr_rl.config import ChainsStage
from tagpr_rl.deploy.address import require_reachable
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.preflight.source import absent
from tagpr_rl.run.branch import until_mistakes
from tagpr_rl.run.mirror import Mirror
from tagpr_rl.types import TagprError

CONNECT_SECONDS = 3.0
MIRROR_SECONDS = 8.0
RAY_CLUSTER = Path("/tmp/ray/ray_current_cluster")
"""Where `ray start` notes its address for `auto`."""


def keys(plan: PlannedRun) -> Iterator[Finding]:
    """Keys of the language models and of W&B that are not in the environment."""
    for where, block in plan.endpoints():
        if block.api_key_env is not None and not plan.environment.get(block.api_key_env, "").strip():
            yield Finding(
                f"{where}.api_key_env",
                block.api_key_env,
                "the environment has no such variable, or it is empty",
                f"export {block.api_key_env}=<key>",
                on_machine=True,
            )
    if plan.todo and plan.recipe.log.wandb == "online" and not wandb_key(plan.environment):
        yield Finding(
            "log.wandb",
            "online",
            "there is no key of Weights & Biases (WANDB_API_KEY, or ~/.netrc by `wandb login`)",
            "export WANDB_API_KEY, run `wandb login`, or use offline",
            on_machine=True,
        )
    for name, same in (("WANDB_MODE", (plan.recipe.log.wandb,)), ("WANDB_DISABLED", ("false", "0"))):
        value = plan.environment.get(name, "").lower()
        if plan.todo and value and value not in same and (name == "WANDB_MODE" or plan.recipe.log.wandb == "online"):
            said = f"{name}={value} in the environment says otherwise"
            yield Finding("log.wandb", plan.recipe.log.wandb, said, "unset one", True)


def wandb_key(environment: Mapping[str, str]) -> bool:
    """Whether a key of W&B is at hand: in the environment, or in ~/.netrc for the server."""
    if environment.get("WANDB_API_KEY", "").strip():
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(environment.get("NETRC") or Path(environment.get("HOME", "~")).expanduser() / ".netrc")
    try:
        return path.is_file() and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def language_models(plan: PlannedRun) -> Iterator[Finding]:
    """Endpoints at which nobody listens. With answers on disk from before they may not be needed."""
    answers = [stage.answers or plan.recipe.out / "answers.sqlite" for _, stage in plan.stages(ChainsStage)]
    for where, block in plan.endpoints():
        if block.kind != "openai" or block.base_url is None:
            continue
        url = urlsplit(block.base_url)
        if wrong := unreachable(url.scheme, url.hostname or "", url.port):
            yield Finding(
                f"{where}.base_url",
                block.base_url,
                wrong,
                "start the server, or correct the address",
                warning=any(path.is_file() for path in answers),
                on_machine=True,
            )


def unreachable(scheme: str, host: str, port: int | None) -> str:
    """Why no connection is made to host and port; "" if one is, or if a proxy stands between."""
    if scheme in getproxies() and not proxy_bypass(host):
        return ""
    try:
        socket.create_connection((host, port or (443 if scheme == "https" else 80)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return f"nothing answers there ({error})"
    return ""


def ray(plan: PlannedRun) -> Iterator[Finding]:
    """The Ray cluster that the run shall join."""
    address = plan.recipe.platform.ray_address
    if address is None or not plan.todo:
        return
    if address == "auto":
        if not plan.environment.get("RAY_ADDRESS") and not RAY_CLUSTER.is_file():
            yield Finding(
                "platform.ray_address",
                "auto",
                "no Ray cluster was started on this machine, and RAY_ADDRESS is not set",
                "name the head's host:port, or leave it out for a private cluster",
                on_machine=True,
            )
        return
    try:
        require_reachable(address)
    except TagprError as error:
        yield Finding("", None, str(error), on_machine="nothing answers" in str(error))


def mirror(plan: PlannedRun) -> Iterator[Finding]:
    """The mirror's file system: whether its package is there and the URL answers. Writing shows at the first copy."""
    url = plan.recipe.mirror
    if url is None:
        return
    from fsspec.registry import known_implementations, registry

    scheme = url.partition("://")[0]
    if scheme not in known_implementations and scheme not in registry:
        yield Finding("mirror", url, f"no file system is called {scheme}", "use s3://, gs:// or another one of fsspec")
        return
    package = known_implementations[scheme]["class"].partition(".")[0] if scheme not in registry else ""
    if package and importlib.util.find_spec(package) is None:
        yield Finding(
            "mirror", url, f"the package {package} is not installed", f"pip install {package}", on_machine=True
        )
    elif scheme == "memory":
        yield Finding("mirror", url, "this copy ends with the process", "use a folder or a bucket", True)
    elif scheme != "file" and (wrong := no_answer(f"{url.rstrip('/')}/{plan.recipe.name}")):
        yield Finding("mirror", url, wrong, "correct the URL, or the credentials in the environment", on_machine=True)


def no_answer(url: str) -> str:
    """Why a run's copy at a URL cannot be read in MIRROR_SECONDS; "" if it can, or if there is none yet."""
    said: list[str] = []

    def ask() -> None:
        try:
            Mirror(url).require_answer()
            said.append("")
        except TagprError as error:
            said.append(str(error).removeprefix(f"{url}: "))

    thread = threading.Thread(target=ask, daemon=True)  # a file system's own limits are minutes
    thread.start()
    thread.join(MIRROR_SECONDS)
    return said[0] if said else f"no answer in {MIRROR_SECONDS:g} seconds"


def other_run(plan: PlannedRun) -> Iterator[Finding]:
    """The run whose finished stages this one starts from."""
    source = plan.recipe.from_run
    if source is None or plan.folder.resolved.is_file():
        return
    if "://" in source.run:
        if wrong := no_answer(source.run):
            yield Finding("from_run.run", source.run, wrong, "correct the URL, or the credentials", on_machine=True)
        return
    folder = Path(source.run)
    if not (folder / "resolved.json").is_file():
        what = "no such folder" if not folder.is_dir() else "it holds no run (no resolved.json)"
        yield Finding("from_run.run", source.run, what, "name a run's folder", on_machine=absent(folder))
        return
    try:
        mistakes = until_mistakes(plan.recipe)
    except TagprError as error:
        yield Finding("from_run.run", source.run, str(error))
        return
    if mistakes:
        yield Finding(
            "from_run.until", source.until, "; ".join(mistakes), "name an earlier stage, or null to take what is equal"
        )
