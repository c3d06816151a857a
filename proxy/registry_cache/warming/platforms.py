"""Platforms as people write them, and as indexes spell them."""

import platform as machine
import re

from registry_cache.model.errors import RegistryCacheError

EVERY_PLATFORM = "all"

# What uname and Debian call them, in the words of images.
_ALIASES = {
    "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "armhf": "arm/v7",
    "armv6l": "arm/v6", "armel": "arm/v6", "i386": "386", "i486": "386", "i586": "386", "i686": "386",
}  # fmt: skip
# Source: the image index of the OCI image spec names Go's GOOS and GOARCH.
_SYSTEMS = frozenset({
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "wasip1", "windows", "zos",
})  # fmt: skip
_ARCHITECTURES = frozenset({
    "386", "amd64", "amd64p32", "arm", "arm64", "arm64be", "armbe", "loong64", "mips", "mips64", "mips64le",
    "mips64p32", "mips64p32le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc",
    "sparc64", "wasm",
})  # fmt: skip
_VARIANT = re.compile(r"[a-z0-9][a-z0-9._]{0,30}")


class PlatformUnknown(RegistryCacheError):
    """No image is for such a platform."""


def host_platform() -> str:
    """The machine's, as ``linux/amd64``."""
    return full_platform(machine.machine())


def full_platform(text: str) -> str:
    """``linux/arm64`` for ``arm64``, ``aarch64`` or ``linux/arm64/v8``, as indexes spell it; of whatever there is."""
    text = text.strip().lower()
    if text == EVERY_PLATFORM:
        return text
    if "/" not in text or text.startswith("arm/"):
        text = f"linux/{text}"
    system, _, rest = text.partition("/")
    architecture, slash, variant = rest.partition("/")
    full = f"{system}/{_ALIASES.get(architecture, architecture)}{slash}{variant}"
    # arm64 is v8 where nothing else is said, and arm is v7.
    return f"{full}/v7" if full.endswith("/arm") else full.removesuffix("/v8")


def asked_platform(text: str) -> str:
    """As :func:`full_platform`, of what a user asks for. An operating system alone is meant on this architecture.

    Raises:
        PlatformUnknown: there is no such operating system or architecture.
    """
    known = text.strip().lower()
    full = full_platform(f"{known}/{host_platform().partition('/')[2]}" if known in _SYSTEMS else known)
    if full == EVERY_PLATFORM:
        return full
    system, architecture, *variants = full.split("/")
    if system not in _SYSTEMS or architecture not in _ARCHITECTURES:
        raise PlatformUnknown(f"{text!r}: unknown operating system or architecture: write linux/amd64, arm64 or all")
    if len(variants) > 1 or not all(map(_VARIANT.fullmatch, variants)):
        raise PlatformUnknown(f"{text!r}: unknown variant: write OS/ARCH or OS/ARCH/VARIANT, such as linux/arm/v7")
    return full
