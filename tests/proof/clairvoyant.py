"""The bound that no cache can pass: one that knows the future."""


def clairvoyant_hit_bytes(requests: list[tuple[str, int]], cap_bytes: int) -> int:
    """Bytes that a cache which knows the future serves from *requests* (digest, bytes): Belady's rule, by next use."""
    next_use: list[float] = [0.0] * len(requests)
    seen: dict[str, int] = {}
    for position in reversed(range(len(requests))):
        digest, _ = requests[position]
        next_use[position] = seen.get(digest, float("inf"))
        seen[digest] = position
    held: dict[str, tuple[float, int]] = {}
    used = hits = 0
    for position, (digest, size) in enumerate(requests):
        if digest in held:
            hits += size
        elif size <= cap_bytes and next_use[position] != float("inf"):
            used += size
        else:
            continue
        held[digest] = (next_use[position], size)
        while used > cap_bytes:
            victim = max(held, key=lambda known: held[known][0])
            used -= held.pop(victim)[1]
    return hits
