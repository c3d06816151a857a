"""Evaluates the NixOS module with nix-bin and the stub of nixpkgs, in a store of the test's own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Nix:
    """Args:
    directory: for its store and state.
    """

    def __init__(self, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "NIX_STORE_DIR": str(directory / "store"),
            "NIX_STATE_DIR": str(directory / "state"),
            "NIX_LOG_DIR": str(directory / "log"),
            "NIX_CONF_DIR": str(directory / "conf"),
            "NIX_CONFIG": "build-users-group =",
            "HOME": str(directory),
        }
        directory.mkdir(exist_ok=True)

    def try_evaluate(self, expression: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", "--expr", expression],
            check=False,
            capture_output=True,
            text=True,
            cwd=HERE,
            env=self._environment,
        )

    def evaluate(self, expression: str) -> Any:
        done = self.try_evaluate(expression)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def host(self, change: str = "{ }", systemd: str = "252") -> dict[str, Any]:
        """The example host with *change*, a module: what tests/nix/host.nix reads off it."""
        return self.evaluate(_host(change, systemd))

    def refused(self, change: str) -> str:
        """Why the example host with *change* cannot be evaluated."""
        done = self.try_evaluate(_host(change, "252"))
        assert done.returncode != 0
        return done.stderr


def _host(change: str, systemd: str) -> str:
    return (
        f'let stub = import ./stub {{ systemdVersion = "{systemd}"; }}; inherit (stub) lib; in stub.evaluate {change}'
    )


def settings(unit: dict[str, Any]) -> dict[str, Any]:
    """What the file holds that the unit's program is started with."""
    path = unit["serviceConfig"]["ExecStart"].split(" --config ")[1]
    return json.loads(Path(path).read_text())


def toml(document: dict[str, Any], *path: str) -> str:
    """Plain values are written in TOML as in JSON; tables come last."""
    lines = [f"{name} = {_value(value)}" for name, value in document.items() if not isinstance(value, dict)]
    for name, table in document.items():
        if isinstance(table, dict):
            inner = (*path, name)
            lines += [f"[{'.'.join(map(json.dumps, inner))}]", toml(table, *inner)]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_value(inner)}" for name, inner in value.items()) + "}"
    return "[" + ", ".join(map(_value, value)) + "]" if isinstance(value, list) else json.dumps(value)


def unit_text(unit: dict[str, Any]) -> str:
    """The unit file that NixOS makes of ``systemd.services.NAME`` or ``systemd.timers.NAME``."""
    own = {"description": "Description", "before": "Before", "after": "After", "wants": "Wants"}
    sections = {
        "Unit": {own[name]: unit[name] for name in own if name in unit} | unit.get("unitConfig", {}),
        "Service": unit.get("serviceConfig", {}),
        "Timer": unit.get("timerConfig", {}),
        "Install": {"WantedBy": unit["wantedBy"]} if "wantedBy" in unit else {},
    }
    lines = []
    for section, entries in sections.items():
        lines += [f"[{section}]"] if entries else []
        for name, value in entries.items():
            lines += [f"{name}={_word(one)}" for one in (value if isinstance(value, list) else [value])]
    return "\n".join(lines) + "\n"


def _word(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
