"""Platforms as people write them."""

import pytest

from registry_cache.warming import platforms
from registry_cache.warming.platforms import PlatformUnknown, asked_platform, full_platform, host_platform


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        (" Linux/ARM64/v8 ", "linux/arm64"),
        ("arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("arm/v6", "linux/arm/v6"),
        ("linux/arm/v5", "linux/arm/v5"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("windows/amd64", "windows/amd64"),
        ("wasip1/wasm", "wasip1/wasm"),
        ("linux/riscv64", "linux/riscv64"),
        ("all", "all"),
    ],
)
def test_what_people_write_is_read_as_docker_reads_it(text, meant):
    assert asked_platform(text) == full_platform(text) == meant


def test_an_operating_system_alone_is_on_this_architecture(monkeypatch):
    monkeypatch.setattr(platforms.machine, "machine", lambda: "aarch64")
    assert (host_platform(), asked_platform("windows")) == ("linux/arm64", "windows/arm64")


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "/amd64", "amd46", "lunix/amd64", "linux/amd46", "linux/unknown", "any/any"]
)
def test_unknown_ones_are_refused(text):
    with pytest.raises(PlatformUnknown, match="unknown operating system or architecture"):
        asked_platform(text)


@pytest.mark.parametrize("text", ["linux/arm/v7/x", "linux/arm/", "linux/arm/-", "linux/arm/v 7"])
def test_odd_variants_are_refused(text):
    with pytest.raises(PlatformUnknown, match="unknown variant"):
        asked_platform(text)
