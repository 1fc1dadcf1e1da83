"""Who may use a server of this project: on loopback whoever reaches it, elsewhere whoever shows the token.

The token comes from the environment, so that it stands in no command line, no address and no log.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from tagpr_rl.types import TagprError

VARIABLE = "TAGPR_TOKEN"
SHORTEST = 16
"""Characters of a token."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server."""

    host: str
    """The address that the server listens on."""
    token: str
    """"" if none is needed."""

    def knows(self, host: str | None) -> bool:
        """Whether a request's header `Host` may be answered.

        A page of a stranger can point a name of its own at 127.0.0.1 and so read what this server says (DNS
        rebinding). The browser then sends that name, so on loopback only loopback's own names are answered. Elsewhere
        the token keeps such a page out.
        """
        if not is_loopback(self.host):
            return True
        try:
            name = urllib.parse.urlsplit(f"//{host or ''}").hostname
        except ValueError:
            return False
        return name is not None and is_loopback(name)

    def lets_in(self, token: str) -> bool:
        """Whether `token` is the right one, or none is needed. The time it takes does not depend on the text."""
        return not self.token or secrets.compare_digest(token.encode(), self.token.encode())

    def bearer(self, header: str | None) -> bool:
        """`lets_in` for the token of a header `Authorization: Bearer TOKEN`."""
        scheme, _, token = (header or "").partition(" ")
        return self.lets_in(token.strip() if scheme.lower() == "bearer" else "")


def access(host: str, environment: Mapping[str, str] | None = None) -> Access:
    """The rules of a server on `host`. TagprError if it is not loopback and the environment has no good token.

    A token that is set is wanted on loopback, too: other users of a machine reach its loopback.
    """
    token = (os.environ if environment is None else environment).get(VARIABLE, "")
    if not token and not is_loopback(host):
        raise TagprError(
            f"--host {host} is reached from other machines, so it needs a token: "
            f"export {VARIABLE}=$(openssl rand -hex 16), or leave --host out and use `ssh -L`"
        )
    if token and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or token.strip() != token):
        raise TagprError(
            f"the token in {VARIABLE} needs {SHORTEST} printable ASCII characters or more, without white space at its "
            "ends: `openssl rand -hex 16` makes one"
        )
    return Access(host, token)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address: `localhost`, 127.0.0.0/8 or ::1. 0.0.0.0 is every address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
