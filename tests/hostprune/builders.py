"""Short ways to say what a host holds."""

from registry_cache.hostprune.snapshot import Container, Disk, Image, Service, Snapshot, Task
from registry_cache.settings.model import PruneSettings

DAY = 86400.0
NOW = 1_800_000_000.0
OLD = NOW - 60 * DAY
GB = 1_000_000_000


def image_id(name):
    return "sha256:" + name.encode().hex().ljust(64, "0")[:64]


def an_image(name, *, layers=None, sizes=None, last_used_at=OLD, parent=None, **more):
    layers = (f"layer-{name}",) if layers is None else tuple(layers)
    sizes = tuple(GB for _ in layers) if sizes is None else tuple(sizes)
    return Image(
        image_id=image_id(name),
        layers=layers,
        layer_sizes_bytes=sizes,
        size_bytes=sum(sizes),
        parent_id=image_id(parent) if parent else "",
        last_used_at=last_used_at,
        **more,
    )


def a_container(image, *, state="running", created_at=OLD, name="c", image_name=""):
    return Container("c" * 64, name, image.image_id if image else "", image_name, state, created_at)


def a_service(*images, name="web"):
    return Service(name, images)


def a_task(image="", *, state="running", desired_state="running", on_this_node=True):
    return Task("t1", "web", image, state, desired_state, on_this_node)


def a_snapshot(*images, free_bytes=5 * GB, total_bytes=100 * GB, **more):
    return Snapshot(now=NOW, disk=Disk("/data", total_bytes, free_bytes), images=images, **more)


def some_settings(**given):
    return PruneSettings(**given)
