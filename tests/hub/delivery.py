"""Sends an answer, with the faults that it meets."""

import os
from dataclasses import dataclass
from email.utils import formatdate
from itertools import pairwise

from .behaviour import Behaviour
from .counters import Counters, Record
from .faults import Fault, Faults
from .http import Answer, Connection, FileBody, Request, render_head

PIECE_BYTES = 1 << 18
NO_BODY = (204, 304)


def misanswer(fault: Fault, request: Request, answer: Answer) -> Answer:
    """Return *answer* with the faults that concern its status, its headers and what the body says."""
    status, headers, body = answer.status, dict(answer.headers), answer.body
    if fault.body is not None:
        body = fault.body.encode()
        headers.pop("Content-Length", None)
    if fault.range_as_200 and status == 206:
        status = 200
        headers.pop("Content-Range")
    if "Content-Range" in headers:
        headers["Content-Range"] = _wrong_range(fault, headers["Content-Range"])
    if location := request.target if fault.redirect_loop else fault.redirect_to:
        status, body = 307, b""
        headers = {"Location": location}
    dropped = [name.lower() for name in fault.drop_headers]
    headers = {name: value for name, value in headers.items() if name.lower() not in dropped}
    for name, value in fault.headers.items():
        headers = {kept: headers[kept] for kept in headers if kept.lower() != name.lower()} | {name: value}
    return Answer(status, headers, body)


@dataclass
class Delivery:
    """The way of one answer to its client."""

    connection: Connection
    request: Request
    record: Record
    fault: Fault
    faults: Faults
    behaviour: Behaviour
    counters: Counters

    async def send(self, answer: Answer) -> bool:
        """Send *answer* and return whether the connection lives on.

        Raises:
            ConnectionError: the client left, or the fault ended the connection.
        """
        body = _Body(answer, self.fault)
        bodiless = self.request.method == "HEAD" or answer.status in NO_BODY
        framing = "length" if bodiless else self.fault.framing
        headers = self._headers(answer, framing, body.size_bytes)
        self.record.status = answer.status
        self.counters.changed()
        await self.connection.send(render_head(answer.status, headers))
        if not bodiless:
            with body:
                await self._send_body(body, chunked=framing == "chunked")
        self.record.complete = True
        self.counters.changed()
        framed = "Content-Length" in headers or "Transfer-Encoding" in headers or bodiless
        return framed and not self.fault.extra_bytes

    def _headers(self, answer: Answer, framing: str, size_bytes: int) -> dict[str, str]:
        headers = {"Date": formatdate(usegmt=True), **answer.headers}
        if framing != "length":
            headers.pop("Content-Length", None)
            headers |= {"Transfer-Encoding": "chunked"} if framing == "chunked" else {"Connection": "close"}
        elif answer.status in NO_BODY or "content-length" in map(str.lower, self.fault.drop_headers):
            headers.pop("Content-Length", None)
        elif self.request.method != "HEAD" or "Content-Length" not in headers:
            # A HEAD that was passed on to the registry has a length without a body.
            headers["Content-Length"] = str(size_bytes)
        return headers

    async def _send_body(self, body: "_Body", *, chunked: bool) -> None:
        fault = self.fault
        total = body.size_bytes + fault.extra_bytes
        stops = {fault.stall_after_bytes, fault.reset_after_bytes, fault.end_after_bytes, 0, total}
        await self._misbehave(0)
        for start, end in pairwise(sorted(stop for stop in stops if stop is not None and stop <= total)):
            sent = start
            while sent < end:
                rate = fault.bandwidth_bytes_per_second or self.behaviour.bandwidth_bytes_per_second
                # A slow connection gets small pieces, twenty a second.
                piece = body.read(sent, min(end - sent, max(1, rate // 20) if rate else PIECE_BYTES, PIECE_BYTES))
                data = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
                await self.connection.send(data, bytes_per_second=rate)
                sent += len(piece)
                self.record.bytes_sent = sent
                self.counters.changed()
            await self._misbehave(end)
        if chunked:
            await self.connection.send(b"0\r\n\r\n")

    async def _misbehave(self, sent_bytes: int) -> None:
        if sent_bytes == self.fault.stall_after_bytes:
            await self.faults.hold(self.fault, self.connection, None)
        reset = sent_bytes == self.fault.reset_after_bytes
        if reset or sent_bytes == self.fault.end_after_bytes:
            await self.connection.flush()
            self.connection.abort(reset=reset)
            raise ConnectionAbortedError("a fault ended the connection")


class _Body:
    """Random access to the bytes that will be sent, wrong ones included."""

    def __init__(self, answer: Answer, fault: Fault) -> None:
        self._body = answer.body
        self._flip_at = fault.flip_byte_at
        self._true_bytes = answer.size_bytes
        if fault.truncate_to_bytes is not None:
            self._true_bytes = min(self._true_bytes, fault.truncate_to_bytes)
        self.size_bytes = self._true_bytes + fault.append_bytes
        self._file = -1

    def __enter__(self) -> None:
        if isinstance(self._body, FileBody):
            self._file = os.open(self._body.path, os.O_RDONLY)

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset: int, count: int) -> bytes:
        true = max(0, min(count, self._true_bytes - offset))
        if isinstance(self._body, FileBody):
            piece = os.pread(self._file, true, self._body.start + offset)
        else:
            piece = self._body[offset : offset + true]
        # Added bytes are spaces: a token or a manifest with them is still good JSON.
        piece = piece.ljust(count) if len(piece) < count else piece
        if self._flip_at is not None and offset <= self._flip_at < offset + count:
            at = self._flip_at - offset
            piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
        return piece


def _wrong_range(fault: Fault, content_range: str) -> str:
    """Return "bytes 5-9/10" with the start or the total that *fault* claims."""
    window, _, total = content_range.removeprefix("bytes ").partition("/")
    start, _, end = window.partition("-")
    if start.isdigit():
        window = f"{int(start) + fault.range_start_shift}-{end}"
    return f"bytes {window}/{total if fault.range_total is None else fault.range_total}"
