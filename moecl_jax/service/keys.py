"""Who may call what: API keys, each with a name and a role.

A file of keys has a line `ROLE NAME KEY` for each; empty lines and lines that begin with # are
skipped. The environment variable `MOECL_KEYS` holds the same lines, with commas or line breaks
between them. A client sends its key in the header `Authorization: Bearer KEY` (RFC 6750).
"""

import dataclasses
import enum
import hashlib
import hmac
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from moecl_jax.errors import UserError
from moecl_jax.outside import shortened
from moecl_jax.writing import named

VARIABLE = "MOECL_KEYS"
"""The environment variable that holds keys."""

LEAST_CHARACTERS = 16
"""Characters of the shortest key that is accepted."""

_KEY = re.compile(r"[!-+\--~]+")  # printable ASCII, as a header may hold, but no comma
_NAME = re.compile(r"[\w.@-]{1,64}")


class Role(enum.IntEnum):
    """What a holder of a key may do; each role may do what those below it may.

    A caller classifies texts, a reviewer decides texts too, and an admin changes the checkpoint.
    """

    CALLER = 1
    REVIEWER = 2
    ADMIN = 3


@dataclasses.dataclass(frozen=True)
class Holder:
    """Whoever a key was given to.

    Attributes:
      name: name in the file of keys; audits and limits go by it.
      role: what the holder may do.
    """

    name: str
    role: Role


LOCAL = Holder("local", Role.ADMIN)
"""Whoever calls a service that has no keys, which is reached from its own machine alone."""


class Keys:
    """The keys of a service, of which it keeps SHA-256 digests alone."""

    def __init__(self, holders: dict[str, Holder]):
        """Takes keys and their holders; without any, everybody is `LOCAL`."""
        self._holders = [(_digest(key), holder) for key, holder in holders.items()]

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._holders)

    @classmethod
    def load(cls, path: Path | None = None) -> "Keys":
        """Reads a file of keys, or the environment variable `MOECL_KEYS` where no file is named.

        Raises:
          UserError: a line is malformed, a key or a name occurs twice, or the file holds no key.
        """
        if path is None:
            text, place = os.environ.get(VARIABLE, "").replace(",", "\n"), VARIABLE
        else:
            with named(path):
                data = path.read_bytes()
            try:
                text, place = data.decode("utf-8-sig"), str(path)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: not UTF-8 text; expected lines ROLE NAME KEY") from error
        holders: dict[str, Holder] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                key, holder = _parse(line, f"{place}, line {number}")
                if key in holders or holder.name in {other.name for other in holders.values()}:
                    raise UserError(f"{place}, line {number}: this key or name occurs before")
                holders[key] = holder
        if path is not None and not holders:
            raise UserError(f"{path}: holds no key; expected lines ROLE NAME KEY")
        return cls(holders)

    def holder_of(self, header: str | None) -> Holder | None:
        """The holder of the key in the value of an `Authorization` header; None if it has none.

        The time that it takes does not depend on how much of a key is right, nor on which key of
        the service it is: all digests are compared, each in constant time.
        """
        if not self:
            return LOCAL
        scheme, _, key = (header or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest, holder in self._holders:
            found = holder if hmac.compare_digest(digest, given) else found
        return found if scheme.lower() == "bearer" else None

    def role_of(self, header: str | None) -> Role | None:
        """The role of the key in the value of an `Authorization` header; None if it has none."""
        holder = self.holder_of(header)
        return None if holder is None else holder.role


_BEARER = HTTPBearer(auto_error=False, description="a key of the service")


def require(role: Role) -> Callable[..., Holder]:
    """A FastAPI dependency that lets in holders of at least a role, and gives the `Holder`.

    The application has its `Keys` as `app.state.keys`. Without a valid key the answer is 401, with
    a role too low 403.
    """

    def check(
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Holder:
        keys: Keys = request.app.state.keys
        holder = keys.holder_of(request.headers.get("authorization"))
        if holder is None:
            raise unauthorized()
        if holder.role < role:
            raise HTTPException(
                403, f"needs the role {role.name.lower()}; this key has {holder.role.name.lower()}"
            )
        return holder

    return check


def unauthorized() -> HTTPException:
    """The answer to a missing or wrong key."""
    return HTTPException(
        401,
        "no valid key; send the header Authorization: Bearer KEY",
        {"WWW-Authenticate": "Bearer"},
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _parse(line: str, place: str) -> tuple[str, Holder]:
    """The key and the holder of a line. No message quotes a key."""
    parts = line.split()
    names = [role.name.lower() for role in Role]
    if len(parts) != 3 or parts[0] not in names:
        raise UserError(f"{place}: expected ROLE NAME KEY, ROLE being one of {', '.join(names)}")
    role, name, key = parts
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{place}: the name {shortened(name)} must be 1 to 64 letters, digits or any of . _ @ -"
        )
    if len(key) < LEAST_CHARACTERS or not _KEY.fullmatch(key):
        raise UserError(
            f"{place}: the key of {name} must be at least {LEAST_CHARACTERS} printable ASCII "
            "characters without a comma; 'openssl rand -hex 32' makes one"
        )
    return key, Holder(name, Role[role.upper()])
