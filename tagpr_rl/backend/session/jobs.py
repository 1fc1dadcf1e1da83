"""Runs on a remote Ray cluster through its Jobs API: submit, follow the log, status, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tagpr_rl.config import Recipe
from tagpr_rl.config.environment import go_direct, proxy_hint
from tagpr_rl.deploy.need import ROOT, run_command, shell, storage
from tagpr_rl.types import TagprError

CONNECT_SECONDS = 5.0
LOST_SECONDS = 60.0
"""A cluster that was silent for this long while its log was followed counts as lost."""
STOP_SECONDS = 30.0
EXCLUDES = (
    "/runs/", "/outputs/", "/wandb/", "/logs/", "/.git", "/.venv*/", "/build/", "/dist/", "/.env", ".netrc",
    "__pycache__/", ".*_cache/", ".hypothesis/", "*.egg-info/", "*.log",
)  # fmt: skip
"""Not shipped with a job (gitignore syntax), besides what .gitignore names."""
RUN_KEY = "tagpr_run"
"""Job metadata: the run's folder on the cluster. Two jobs must not write one run."""


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API at `http[s]://host:port`. TagprError within seconds if nothing answers there."""
    url = urllib.parse.urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise TagprError(
            f"--address {address}: not the address of a Ray dashboard; it looks like http://127.0.0.1:8265"
        )
    go_direct(address)
    # The client itself would wait for minutes if packets are dropped.
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (403, 407, 502, 503, 504) and (proxy := proxy_hint(address)):
            raise TagprError(f"--address {address}: HTTP {error.code} {error.reason}{proxy}") from None
        # something answers; the client says what is wrong with it
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TagprError(
            f"--address {address}: no Ray dashboard answers there ({reason}); is the cluster up, is the port forwarded "
            "(`ray dashboard`, `kubectl port-forward`), and does it have ray[default]?{proxy_hint(address)}"
        ) from None
    logging.getLogger("ray").setLevel(logging.WARNING)  # not a line for each socket
    with _explained(address):
        return JobSubmissionClient(address)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """The client's errors as one TagprError that names the address."""
    try:
        yield
    except AuthenticationError as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise TagprError(
            f"--address {address}: the cluster wants its token: {first}\nSet RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from error
    except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
        raise TagprError(f"--address {address}: {error}") from error


def submit(
    client: JobSubmissionClient,
    recipe: Recipe,
    recipe_path: Path,
    overrides: Sequence[str],
    address: str,
    *,
    pass_env: bool = False,
) -> str:
    """Submit `tagpr run` with the checkout as working directory; returns the job's id.

    With `pass_env` the values of `cluster.env` go with the job, where everyone who reaches the cluster's
    API can read them; without it the cluster's nodes must have them.
    Raises TagprError if a job of the same run is alive, or a named variable is not set here.
    """
    command = run_command(recipe, recipe_path, overrides, "auto")
    run = f"{storage(recipe)}/{recipe.name}"
    with _explained(address):
        for job in client.list_jobs():
            if (job.metadata or {}).get(RUN_KEY) == run and not JobStatus(job.status).is_terminal():
                raise TagprError(
                    f"job {job.submission_id} is {job.status} and writes the same run, {run}; wait, stop it with "
                    f"`tagpr cluster jobs stop {job.submission_id} --address {address}`, or set another name=<name>"
                )
        environment: dict[str, Any] = {"working_dir": str(ROOT), "excludes": list(EXCLUDES)}
        if pass_env:
            environment["env_vars"] = _values(recipe.cluster.env)
        return str(
            client.submit_job(
                entrypoint=shell(command), runtime_env=environment, metadata={RUN_KEY: run, "recipe": recipe.name}
            )
        )


def _values(names: Sequence[str]) -> dict[str, str]:
    absent = [name for name in names if name not in os.environ]
    if absent:
        raise TagprError(f"--pass-env: not set in this shell: {', '.join(absent)} (named in cluster.env)")
    return {name: os.environ[name] for name in names}


def describe(client: JobSubmissionClient, job_id: str, address: str) -> dict[str, str]:
    """State of one job, as text. Values of environment variables are left out."""
    job = _info(client, job_id, address)
    facts = {"job": job_id, "status": str(job.status.value), "run": (job.metadata or {}).get(RUN_KEY, "-")}
    for key, stamp in (("started", job.start_time), ("ended", job.end_time)):
        if stamp:
            facts[key] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp / 1000))
    # Ray repeats the end of the output in the message of a job that failed.
    message = (job.message or "-").strip().partition(", last available logs")[0]
    return facts | {"command": job.entrypoint, "message": message}


def _info(client: JobSubmissionClient, job_id: str, address: str) -> JobDetails:
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "404" not in str(error):
            raise TagprError(f"--address {address}: {error}") from error
        raise TagprError(f"job {job_id}: the cluster at {address} knows no such job") from None
    except requests.exceptions.RequestException as error:
        raise TagprError(f"--address {address}: the cluster does not answer: {error}") from error


def logs(client: JobSubmissionClient, job_id: str, address: str) -> str:
    """What the job has printed so far."""
    _info(client, job_id, address)
    with _explained(address):
        return str(client.get_job_logs(job_id))


def follow(client: JobSubmissionClient, job_id: str, address: str, write: Callable[[str], object]) -> bool:
    """Pass the job's output to `write` until it ends; True if it succeeded.

    A broken connection is made again; what was written is not written twice. TagprError after `LOST_SECONDS`
    without an answer: the job goes on there.
    """
    written, last_contact = 0, time.monotonic()
    while True:
        try:
            written = asyncio.run(_tail(client, job_id, written, write))
            status = client.get_job_info(job_id).status
            last_contact = time.monotonic()
            if status.is_terminal():
                return status == JobStatus.SUCCEEDED
        except _Broken as broken:
            last_contact = time.monotonic() if broken.written > written else last_contact
            written = broken.written
        except (RuntimeError, requests.exceptions.RequestException):
            pass
        if time.monotonic() - last_contact > LOST_SECONDS:
            raise TagprError(
                f"lost contact with {address} for {LOST_SECONDS:g} s; the job may go on there: "
                f"`tagpr cluster jobs status {job_id} --address {address}`"
            )
        time.sleep(0.5)


class _Broken(Exception):
    """The log's connection broke after `written` characters."""

    def __init__(self, written: int) -> None:
        super().__init__()
        self.written = written


async def _tail(client: JobSubmissionClient, job_id: str, written: int, write: Callable[[str], object]) -> int:
    """Follow the log from its beginning, dropping the first `written` characters; returns the count so far."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job_id):
            new = text[max(0, written - seen) :]
            seen += len(text)
            if new:
                write(new)
                written = max(written, seen)
    except (RuntimeError, ClientError, OSError) as error:
        raise _Broken(written) from error
    return written


def stop(client: JobSubmissionClient, job_id: str, address: str) -> dict[str, str]:
    """End a job; returns its state once it has ended, or after `STOP_SECONDS`."""
    _info(client, job_id, address)
    with _explained(address):
        client.stop_job(job_id)
    deadline = time.monotonic() + STOP_SECONDS
    while not _info(client, job_id, address).status.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    return describe(client, job_id, address)


def submit_and_follow(
    recipe: Recipe, recipe_path: Path, overrides: Sequence[str], address: str, *, pass_env: bool, following: bool
) -> bool:
    """What `tagpr cluster submit` does: print the job's id, then its output; False if the job did not succeed."""
    run_command(recipe, recipe_path, overrides, "auto")  # says what the recipe lacks before the cluster is asked
    client = connect(address)
    job_id = submit(client, recipe, recipe_path, overrides, address, pass_env=pass_env)
    print(job_id, flush=True)
    again = f"`tagpr cluster jobs logs {job_id} --address {address} --follow`"
    if recipe.cluster.env and not pass_env:
        names = ", ".join(recipe.cluster.env)
        print(f"the cluster's nodes must have {names}; --pass-env sends the values from here", file=sys.stderr)
    if not following:
        print(f"its output: {again}", file=sys.stderr)
        return True
    try:
        return _ended(client, job_id, address)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; {again}, or `tagpr cluster jobs stop {job_id} --address {address}`", file=sys.stderr)
        raise SystemExit(130) from None


def _ended(client: JobSubmissionClient, job_id: str, address: str) -> bool:
    succeeded = follow(client, job_id, address, lambda text: print(text, end="", flush=True))
    state = describe(client, job_id, address)
    print(f"job {job_id}: {state['status']}: {state['message']}", file=sys.stderr)
    return succeeded


def manage(what: str, job_id: str, address: str, *, following: bool = False) -> bool:
    """What `tagpr cluster jobs status|logs|stop` does; False if a followed job did not succeed."""
    client = connect(address)
    if what == "logs":
        if following:
            _info(client, job_id, address)
            return _ended(client, job_id, address)
        print(logs(client, job_id, address), end="")
        return True
    state = describe(client, job_id, address) if what == "status" else stop(client, job_id, address)
    for key, value in state.items():
        print(f"{key:<8} {value}")
    return True
