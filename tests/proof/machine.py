"""What the figures depend on: the machine, and whether it had anything else to do."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

# A timing is judged only where others take less than this of all cores.
BUSY = 0.25
_IDLE = (3, 4)  # the fields idle and iowait of /proc/stat


def described() -> dict[str, Any]:
    """Cores, memory and versions; no name of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    docker = subprocess.run(["dockerd", "--version"], check=False, capture_output=True, text=True).stdout
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "") + f", Linux {platform.release()}",
        "docker": docker.removeprefix("Docker version ").partition(",")[0],
    }


def busy_share(seconds: float = 1.0) -> float:
    """The share of all cores that is in use while we do nothing: 0 to 1, what a hypervisor takes away included."""
    before = _cpu_times()
    time.sleep(seconds)
    spent = [after - earlier for earlier, after in zip(before, _cpu_times(), strict=True)]
    return 1 - sum(spent[field] for field in _IDLE) / max(1, sum(spent))


def _cpu_times() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
