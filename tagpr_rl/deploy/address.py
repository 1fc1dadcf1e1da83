"""Whether a Ray cluster's head can be reached."""

from __future__ import annotations

import socket

from tagpr_rl.types import TagprError

CONNECT_SECONDS = 5.0
"""A cluster's head that does not answer within this is unreachable."""


def require_reachable(address: str) -> None:
    """TagprError if nothing accepts connections at `[ray://]host:port`."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not host or not port.isdigit():
        raise TagprError(f"platform.ray_address={address}: not an address; write auto, or the head's host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise TagprError(
            f"platform.ray_address={address}: nothing answers there ({error}); is the cluster up (`ray status` on its "
            "head), and is this the port of `ray start --head`?"
        ) from None
