"""``python3 cri.py SOCKET pull NAME | remove-all``: the kubelet's questions, without generated code.

Runs in the chroot, with Debian's python3-grpcio. The few messages that it needs have one string or message in field 1
(CRI v1, api.proto of k8s.io/cri-api).
"""

import sys

import grpc

_SERVICE = "/runtime.v1.ImageService/"
_LIMIT_SECONDS = 150
_LENGTH_DELIMITED = 2


def field(value: bytes, number: int = 1) -> bytes:
    """A string or a message as field *number*."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(value)) + value


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """The strings and messages in *message*; numbers are left out."""
    found, position = [], 0
    while position < len(message):
        tag, position = read_varint(message, position)
        length, position = read_varint(message, position)
        if tag & 7 == _LENGTH_DELIMITED:
            found.append((tag >> 3, message[position : position + length]))
            position += length
    return found


def call(channel: grpc.Channel, name: str, request: bytes) -> bytes:
    answer: bytes = channel.unary_unary(_SERVICE + name)(request, timeout=_LIMIT_SECONDS)
    return answer


def main() -> None:
    socket, what, *names = sys.argv[1:]
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        try:
            if what == "pull":
                call(channel, "PullImage", field(field(names[0].encode())))
            else:
                for _, image in fields(call(channel, "ListImages", b"")):
                    call(channel, "RemoveImage", field(field(dict(fields(image)[:1])[1])))
        except grpc.RpcError as error:
            sys.exit(f"error: {error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
