"""Cuts every secret that this process holds out of texts that others wrote: upstreams echo what they were sent."""

import base64
import re
from collections import OrderedDict
from urllib.parse import quote

_REPLACEMENT = "[secret]"
_KEPT = 512
_SIGNATURE_MIN_CHARACTERS = 16
_MIN_CHARACTERS = 4  # a shorter one would cut holes into any text
# What looks like a credential is one, also when it is another's, or cut short; "Basic authentication" does not.
_CREDENTIAL = re.compile(
    r"\b(Bearer|Basic)(?:\s+|%20)(?=[A-Za-z._~+/%-]*[0-9=_~+/])[A-Za-z0-9._~+/%-]{8,}=*", re.IGNORECASE
)
_USERINFO = re.compile(r"(\w+://)[^/\s@\"']*@")
_LONGEST_TEXT = 128 * 1024


class Redactor:
    """The live secrets. Kept in memory only, the last few hundred; whoever learns or makes one tells it.

    Its lifetime is the process's; it may be used from threads.
    """

    def __init__(self) -> None:
        self._secrets: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def learn(self, *secrets: str) -> None:
        """Cut *secrets* out of every text from now on."""
        for secret in secrets:
            if len(secret) < _MIN_CHARACTERS:
                continue
            self._secrets[secret] = None
            self._secrets.move_to_end(secret)
        while len(self._secrets) > _KEPT:
            self._secrets.popitem(last=False)

    def learn_login(self, username: str, password: str) -> None:
        """Learn a password, and what it looks like in a header."""
        encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
        self.learn(password, encoded, quote(password, safe=""))

    def learn_query(self, query: str) -> None:
        """Learn a signed query, as a whole and what in it is long enough to be a signature."""
        values = (part.partition("=")[2] for part in query.split("&"))
        self.learn(query, *(value for value in values if len(value) >= _SIGNATURE_MIN_CHARACTERS))

    def clean(self, text: str) -> str:
        """*text* without them."""
        text = text[:_LONGEST_TEXT]
        for secret in sorted(self._secrets, key=len, reverse=True):
            if secret in text:
                text = text.replace(secret, _REPLACEMENT)
        text = _CREDENTIAL.sub(rf"\1 {_REPLACEMENT}", text)
        return _USERINFO.sub(r"\1", text)
