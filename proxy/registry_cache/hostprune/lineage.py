"""Which image stands on which, and what comes back when one goes."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from registry_cache.hostprune.snapshot import Image


class Lineage:
    """The images that are still there, as a graph; :meth:`remove` takes one out.

    An image is a child of another when the engine says so (classic builder) or when its layers begin with all of the
    other's and go on: BuildKit, pulls and the containerd store record no parents. Where the layers of one of the two
    could not be read, the steps of their builds are compared instead.
    """

    def __init__(self, images: Collection[Image]) -> None:
        self._children: defaultdict[str, set[str]] = defaultdict(set)
        self._by_layers: defaultdict[str, set[str]] = defaultdict(set)
        self._above: defaultdict[str, set[str]] = defaultdict(set)
        self._steps_above: defaultdict[str, set[str]] = defaultdict(set)
        self._blind = {image.image_id for image in images if image.blind}
        for image in images:
            for step in image.steps[:-1]:
                self._steps_above[step].add(image.image_id)
            if image.parent_id:
                self._children[image.parent_id].add(image.image_id)
            if image.chain:
                self._by_layers[image.chain[-1]].add(image.image_id)
            for chain_id in image.chain[:-1]:
                self._above[chain_id].add(image.image_id)

    def children(self, image: Image) -> set[str]:
        """IDs of the images that stand on *image*."""
        top = image.chain[-1] if image.chain else ""
        return self._children.get(image.image_id, set()) | self._above.get(top, set()) | self._by_steps(image)

    def _by_steps(self, image: Image) -> set[str]:
        if not self._blind or not image.steps:
            return set()
        above = self._steps_above.get(image.steps[-1], set())
        return above if image.blind else above & self._blind

    def descendants(self, image: Image) -> set[str]:
        """IDs of the images that stand on *image*, directly or not."""
        found: set[str] = set()
        pending = self.children(image)
        while pending:
            child_id = pending.pop()
            if child_id not in found:
                found.add(child_id)
                pending |= self._children.get(child_id, set())
        return found

    def twins(self, image: Image) -> set[str]:
        """IDs of the other images with exactly the same layers: one of them may be built on the other."""
        return self._by_layers.get(image.chain[-1], set()) - {image.image_id} if image.chain else set()

    def remove(self, image: Image) -> int:
        """Take *image* out.

        Returns:
            bytes of the layers that nothing else holds: what the disk gets back.
        """
        freed_bytes = 0
        for chain_id, size_bytes in zip(image.chain, image.layer_sizes_bytes, strict=False):
            if self._holders(chain_id) == {image.image_id}:
                freed_bytes += size_bytes
        self._children.get(image.parent_id, set()).discard(image.image_id)
        for chain_id in image.chain:
            self._above.get(chain_id, set()).discard(image.image_id)
            self._by_layers.get(chain_id, set()).discard(image.image_id)
        for step in image.steps:
            self._steps_above.get(step, set()).discard(image.image_id)
        return freed_bytes

    def _holders(self, chain_id: str) -> set[str]:
        return self._above.get(chain_id, set()) | self._by_layers.get(chain_id, set())


def with_bases(images: Iterable[Image], used_at: dict[str, float]) -> dict[str, float]:
    """*used_at* spread to bases and parents: who uses an image uses what it stands on.

    This is how a base that only builds use, and no container, counts as used.
    """
    by_id = {image.image_id: image for image in images}
    by_top, by_last_step = defaultdict(set), defaultdict(set)
    for image in by_id.values():
        if image.chain:
            by_top[image.chain[-1]].add(image.image_id)
        if image.steps:
            by_last_step[image.steps[-1]].add(image.image_id)
    spread = dict(used_at)
    # The latest first: what has been reached once need not be walked again.
    pending = sorted(used_at, key=lambda image_id: used_at[image_id])
    while pending:
        image_id = pending.pop()
        if image_id not in by_id:
            continue
        image = by_id[image_id]
        below = {image.parent_id} | {base for chain_id in image.chain[:-1] for base in by_top.get(chain_id, ())}
        if image.blind:
            below |= {base for step in image.steps[:-1] for base in by_last_step.get(step, ())}
        for base in below & by_id.keys():
            if spread.get(base, float("-inf")) < spread[image_id]:
                spread[base] = spread[image_id]
                pending.append(base)
    return spread
