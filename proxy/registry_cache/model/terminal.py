"""What strangers wrote, for a terminal: the one way in which foreign text gets there.

Names, reasons and tags come from upstream, clients, files and the host's engine. A terminal obeys what it is sent: ESC
sequences move its cursor, rename it and answer questions with keystrokes, a line feed makes up a line, and a mark of
writing direction shows a name in another order.
"""

# Longer than any name or reason worth reading.
_LONGEST = 4000


def shown(text: object) -> str:
    r"""*text* as one line in which nothing steers a terminal; what would is written out, as ``\x1b`` or ``\n``."""
    known = str(text)
    if len(known) > _LONGEST:
        known = known[: _LONGEST - 1] + "…"
    if known.isprintable():
        return known
    # Also what other encodings left over (lone surrogates), and marks of writing direction: none of it is printable.
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in known)


def shown_lines(text: object) -> str:
    """As :func:`shown`, for what is several lines, such as a traceback: each behind a bar, so that none is made up."""
    return "\n".join(f"    | {shown(line)}" for line in str(text).split("\n"))


def ascii_json(line: bytes) -> bytes:
    r"""*line*, a JSON text in UTF-8, with ``\u…`` for what is not ASCII: a terminal obeys U+009B as it does ESC [."""
    if line.isascii() and b"\x7f" not in line:
        return line
    return "".join(each if " " <= each <= "~" or each == "\n" else _escape(each) for each in line.decode()).encode()


def _escape(character: str) -> str:
    """As JSON has it: in UTF-16."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
