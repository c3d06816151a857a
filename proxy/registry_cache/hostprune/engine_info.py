"""What about the engine does not change while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_CONTAINERD_ROOT = Path("/var/lib/containerd")

# Swarm's states of a node in which its services cannot be listed (moby, "LocalNodeState"): locked after a restart until
# somebody brings the key, joining, or broken. Not seen means kept.
_SWARM_STATES = {
    "inactive": "",
    "active": "this node is a swarm worker and cannot list services",
    "locked": "this swarm node is locked and cannot list services",
    "pending": "this node is joining its swarm and cannot list services",
    "error": "this swarm node has failed and cannot list services",
}


@dataclass(frozen=True)
class EngineInfo:
    """What about the engine does not change while it runs.

    Args:
        node_id: of the swarm; empty outside a swarm.
        manages_swarm: whether it may list services.
        services_unseen: why it may not, although there may be some; empty outside a swarm too.
        data_root: the directory that holds the images.
    """

    engine_id: str
    version: str
    storage_driver: str
    containerd_store: bool
    root_dir: Path
    data_root: Path
    node_id: str
    manages_swarm: bool
    services_unseen: str = ""
    registry_mirrors: tuple[str, ...] = ()

    @classmethod
    def parse(cls, info: Mapping[str, Any], data_root: Path | None) -> Self:
        swarm = info.get("Swarm") or {}
        state = str(swarm.get("LocalNodeState") or "inactive")
        manages = state == "active" and bool(swarm.get("ControlAvailable"))
        status = dict(pair for pair in info.get("DriverStatus") or () if len(pair) == 2)  # noqa: PLR2004 -- name, value
        containerd_store = str(status.get("driver-type", "")).startswith("io.containerd.")
        root_dir = Path(info["DockerRootDir"])
        return cls(
            # Podman makes up another ID for each answer; the place of its images is what stays.
            engine_id=f"podman {root_dir}" if "BuildahVersion" in info else str(info.get("ID") or ""),
            version=str(info.get("ServerVersion") or ""),
            storage_driver=str(info.get("Driver") or ""),
            containerd_store=containerd_store,
            root_dir=root_dir,
            data_root=data_root or _image_root(root_dir, containerd_store=containerd_store),
            node_id=str(swarm.get("NodeID") or "") if state != "inactive" else "",
            manages_swarm=manages,
            services_unseen="" if manages else _SWARM_STATES.get(state, f"the swarm node is {state}"),
            registry_mirrors=tuple((info.get("RegistryConfig") or {}).get("Mirrors") or ()),
        )


def _image_root(root_dir: Path, *, containerd_store: bool) -> Path:
    """The containerd store lives with the containerd that dockerd started, or with the system's."""
    if not containerd_store:
        return root_dir
    own = root_dir / "containerd" / "daemon"
    try:
        own.stat()
    except FileNotFoundError:
        return _CONTAINERD_ROOT if _CONTAINERD_ROOT.is_dir() else root_dir
    except OSError:
        return root_dir  # only root may look inside
    return own
