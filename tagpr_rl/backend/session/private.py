"""What keeps a run's own Ray cluster to its user: a folder, and keys for TransferQueue.

Ray 2.60's servers listen on every interface whatever the node's address is, and want the user's token by default
(https://docs.ray.io/en/latest/ray-security/token-auth.html); its session folder is open to every local user.
TransferQueue 0.1.11 listens on TCP and unpickles what arrives (utils/serial_utils.py:121).
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wrapt

from tagpr_rl.backend.session.shell import PREFIX
from tagpr_rl.backend.session.worker_settings import from_environment

_NAMESPACE = b"tagpr"


@contextmanager
def private_folder(environment: Mapping[str, str], logs: Path | None = None) -> Iterator[Path]:
    """A folder for Ray's files that only this user can enter.

    The folder goes with the session. After an error, Ray's logs are copied to `logs` first.
    """
    outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=environment.get("RAY_TMPDIR") or None))  # mode 0700
    inner = outer / "ray"  # Ray opens its own folder to everyone
    try:
        yield inner
    except Exception:
        written = inner / "session_latest" / "logs"
        if logs is not None and written.is_dir():  # Ray may not have come so far
            shutil.rmtree(logs, ignore_errors=True)
            shutil.copytree(written, logs, ignore_dangling_symlinks=True)
        raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def close_token_file() -> None:
    """Ray 2.60 makes a token for a user's local clusters and leaves its file open to read for everyone."""
    path = Path.home() / ".ray" / "auth_token"
    if path.is_file() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def share_secret(run_id: str) -> None:
    """Put a new secret for the run's TransferQueue into the cluster's key-value store."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(_key(run_id), secrets.token_bytes(32), namespace=_NAMESPACE)


def prepare_worker() -> None:
    """Give TransferQueue's sockets the run's keys if this process imports it; Ray calls this in every worker."""
    wrapt.register_post_import_hook(_replace, "transfer_queue.utils.zmq_utils")


def _replace(module: Any) -> None:
    module.create_zmq_socket = with_keys(module.create_zmq_socket, _run_keys)


def with_keys(create: Callable[..., Any], keys: Callable[[], tuple[bytes, bytes]]) -> Callable[..., Any]:
    """`create`, TransferQueue's only maker of sockets (zmq_utils.py:326), with CURVE.

    All processes share one pair of keys, and its public half is secret as well: a client that does not know it cannot
    begin a handshake, and the handshake does not show it (RFC 26/CurveZMQ). Sockets that bind to TCP are ROUTERs.
    """
    import zmq

    @functools.wraps(create)
    def create_zmq_socket(ctx: Any, socket_type: Any, ip: str, identity: Any = None) -> Any:
        socket = create(ctx, socket_type, ip, identity)
        public, socket.curve_secretkey = keys()
        socket.curve_publickey = public
        if socket_type == zmq.ROUTER:
            socket.curve_server = True
        else:
            socket.curve_serverkey = public
        return socket

    return create_zmq_socket


def curve_keys(secret: bytes) -> tuple[bytes, bytes]:
    """(public, secret) CURVE keys in Z85, 40 bytes each, of 32 random bytes."""
    import zmq
    from zmq.utils import z85

    encoded = z85.encode(secret)
    return zmq.curve_public(encoded), encoded


@functools.cache
def _run_keys() -> tuple[bytes, bytes]:
    from ray.experimental import internal_kv

    run_id = from_environment().run_id
    secret = internal_kv._internal_kv_get(_key(run_id), namespace=_NAMESPACE)
    if not secret:
        raise RuntimeError(f"the Ray cluster has no secret for the TransferQueue of run {run_id}")
    return curve_keys(secret)


def _key(run_id: str) -> bytes:
    return f"transfer_queue_{run_id}".encode()
