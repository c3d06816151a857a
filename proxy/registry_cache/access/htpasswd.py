"""The users in a file of ``htpasswd -B``: their names, and what their passwords hash to."""

import re
from pathlib import Path

from registry_cache.access.comparing import Comparison, cost_of, nobodys
from registry_cache.model.errors import SettingsError

_MAX_BYTES = 4 * 1024 * 1024
# A salt's last letter has two bits of it: others are written by nobody, and bcrypt takes them for no salt.
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}", re.ASCII)
# 2 ^ cost rounds: 14 takes a second of a core.
_COSTS = range(4, 15)
# More is cut off by bcrypt, so that a longer password would be its own beginning.
PASSWORD_MAX_BYTES = 72


class Users:
    """Who is in a file. Never changes; a changed file is read into another one.

    Args:
        hashes: by user.
    """

    def __init__(self, hashes: dict[str, bytes]) -> None:
        self._hashes = hashes
        self._cost = max(map(cost_of, hashes.values()), default=min(_COSTS))

    def __len__(self) -> int:
        return len(self._hashes)

    def hash_of(self, user: str) -> bytes | None:
        """What *user*'s password hashes to; None for nobody's name."""
        return self._hashes.get(user)

    def comparison(self, user: str, password: str) -> Comparison:
        """What tells whether it is *user*'s password."""
        found = self._hashes.get(user, nobodys(self._cost))
        given = password.encode("utf-8", "surrogatepass")
        cut = given[:PASSWORD_MAX_BYTES].replace(b"\0", b"?")
        return Comparison(found, cut, is_possible=cut == given and user in self._hashes, cost=self._cost)


def read_users(path: Path) -> Users:
    """The users in the file *path*.

    Raises:
        SettingsError: it cannot be read, or a line of it is none that is understood; the text has no part of it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"HTPASSWD: {path}: {why}") from error
    if len(content) > _MAX_BYTES:
        raise SettingsError(f"HTPASSWD: {path}: more than {_MAX_BYTES} bytes")
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, kept = line.strip().partition(":")
        match = _HASH.fullmatch(kept)
        if not colon or not user or not user.isprintable() or match is None:
            raise SettingsError(
                f"HTPASSWD: {path}, line {number}: allowed is USER:HASH as htpasswd -B makes it (bcrypt)"
            )
        if int(match[1]) not in _COSTS:
            raise SettingsError(f"HTPASSWD: {path}, line {number}: allowed is a cost from 4 to 14 (htpasswd -B -C 10)")
        if user in found:
            raise SettingsError(f"HTPASSWD: {path}, line {number}: {user!r} is there twice")
        found[user] = kept.encode()
    return Users(found)
