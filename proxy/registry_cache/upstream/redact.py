"""Cuts every secret that this process holds out of texts that others wrote: upstreams echo what they were sent.

A secret as it is, is cut out of its text. One in another form (escaped, encoded, in another case, in pieces, cut short)
is not looked for place by place: a text that holds any of it is not shown at all.
"""

import base64
import binascii
import html
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote

from registry_cache.model.terminal import shown

_REPLACEMENT = "[secret]"
WITHHELD = "[a text with a secret in it]"
_KEPT = 512
_SIGNATURE_MIN_CHARACTERS = 16
_MIN_CHARACTERS = 4  # a shorter one would cut holes into any text
# Of lists, which are content: a short password could be a tag.
_SURELY_MIN_CHARACTERS = 16
# What looks like a credential is one, also when it is another's, or cut short; "Basic authentication" does not.
_CREDENTIAL = re.compile(
    r"\b(Bearer|Basic)(?:\s+|%20)(?=[A-Za-z._~+/%-]*[0-9=_~+/])[A-Za-z0-9._~+/%-]{8,}=*", re.IGNORECASE
)
_USERINFO = re.compile(r"(?<=://)[^/\s@\"']*@")
# Nobody is shown more than a few hundred characters.
_LONGEST_TEXT = 4096

# A secret is known by pieces of its letters and digits, so many in each: who has that many in a row has some of it.
_PIECE = 12
# Of a longer secret, its beginning: a token service may give one of 64 KB for each name that a client makes up.
_IN_PIECES_MAX_CHARACTERS = 4096
_NO_LETTERS = re.compile(r"[\W_]+", re.ASCII)
_ESCAPES = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z0-9+/_-]{12,}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){8,}")
_ROUNDS = 3


class Redactor:
    """The live secrets. Kept in memory only, the last few hundred; whoever learns or makes one tells it.

    Its lifetime is the process's; it may be used from threads.
    """

    def __init__(self) -> None:
        self._secrets: OrderedDict[str, bool] = OrderedDict()  # and whether their pieces are known
        self._pieces: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def learn(self, *secrets: str, in_pieces: bool = True) -> None:
        """Cut *secrets* out of every text from now on.

        Args:
            in_pieces: withhold texts that hold a part of one, too; not for what may be a part of any text.
        """
        for secret in secrets:
            if len(secret) < _MIN_CHARACTERS:
                continue
            if secret not in self._secrets:
                self._secrets[secret] = in_pieces
                self._pieces.update(_pieces(secret) if in_pieces else ())
            self._secrets.move_to_end(secret)
        while len(self._secrets) > _KEPT:
            secret, in_pieces = self._secrets.popitem(last=False)
            for piece in _pieces(secret) if in_pieces else ():
                self._pieces[piece] -= 1
                if not self._pieces[piece]:
                    del self._pieces[piece]

    def learn_login(self, username: str, password: str) -> None:
        """Learn a password, and what it looks like in a header."""
        encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
        self.learn(password, encoded, quote(password, safe=""))

    def learn_query(self, query: str) -> None:
        """Learn a signed query, as a whole and what in it is long enough to be a signature."""
        values = (part.partition("=")[2] for part in query.split("&"))
        self.learn(
            query, *(value for value in values if len(value) >= _SIGNATURE_MIN_CHARACTERS), in_pieces=False
        )  # parts of it are names of hosts and repositories, which errors have to tell

    def clean(self, text: str) -> str:
        """*text* without them, as one line that steers no terminal: clients show it on theirs, and pages show it."""
        text = text[:_LONGEST_TEXT]
        for secret in sorted(self._secrets, key=len, reverse=True):
            if secret in text:
                text = text.replace(secret, _REPLACEMENT)
        text = _USERINFO.sub("", _CREDENTIAL.sub(rf"\1 {_REPLACEMENT}", text))
        return WITHHELD if self.is_in(text.replace(_REPLACEMENT, "\0")) else shown(text)

    def is_in(self, text: str) -> bool:
        """Whether *text* holds a part of a secret, in any form that an echo has."""
        if not self._pieces:
            return False
        return any(self._holds(letters) for letters in _readings(text))

    def _holds(self, letters: str) -> bool:
        return any(letters[at : at + _PIECE] in self._pieces for at in range(len(letters) - _PIECE + 1))

    def is_in_body(self, body: bytes) -> bool:
        """Whether a long secret stands in *body* as it is. Blocks for some milliseconds a megabyte."""
        return any(len(known) >= _SURELY_MIN_CHARACTERS and known.encode() in body for known in list(self._secrets))


def _letters(text: str) -> str:
    return _NO_LETTERS.sub("", text).lower()


def _pieces(secret: str) -> Iterable[str]:
    """Side by side, so that any part of twice the length has one whole."""
    letters = _letters(secret[:_IN_PIECES_MAX_CHARACTERS])
    starts = {*range(0, len(letters) - _PIECE + 1, _PIECE), len(letters) - _PIECE}
    return {letters[at : at + _PIECE] for at in starts if at >= 0}


def _readings(text: str) -> Iterator[str]:
    """The letters of *text* as it may be meant: as it is, unescaped, and with what is encoded in it decoded."""
    for _ in range(_ROUNDS):
        yield _letters(text)
        yield _letters(" ".join(_decoded(text)))
        plain = html.unescape(unquote(_ESCAPES.sub(_unescaped, text), errors="replace"))
        if plain == text:
            return
        text = plain


def _unescaped(escape: re.Match[str]) -> str:
    number = escape[1] or escape[2]
    return chr(int(number, 16)) if number else escape[3]


def _decoded(text: str) -> Iterator[str]:
    """Every word in *text* that may be Base64 or hexadecimal, as bytes and as one character each."""
    for word in _WORDS.findall(text):
        for start in range(4):  # something may stand before it
            part = word[start:].replace("-", "+").replace("_", "/")
            yield base64.b64decode(part + "A" * (-len(part) % 4)).decode("latin-1")
    for word in _HEX.findall(text):
        yield binascii.unhexlify(word).decode("latin-1")
