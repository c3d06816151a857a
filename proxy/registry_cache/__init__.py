"""A pull-through cache for container registries, and a careful cleaner of the host's own images.

The map. A package imports from lower layers only; ``|`` stands before one that shares the layer above it, and those do
not know each other. The import test and ``docs/architecture.md`` go by this list::

    cli           the commands: one short file each
    completing    what Tab offers, before anything else is loaded
    doctor        what is wrong with an installation, and what to do about it
    assembly      builds concrete things, puts them together, takes them down
    fleet         replicas that share what they fetch: leases in Redis, and a port for each other
    web           the HTTP face: /v2/ for clients, /_stats, /_health and /metrics for operators
    importing     takes over the storage folder of a registry:2
    pull          hit, miss or stale; one flight for each cold digest
    catalog       what is here and whose it is: list, purge, pins, proven links
    store         verified bytes on a disk, and the index of them
    | upstream    the registry to fetch from: tokens, limits, breaker, transports
    | hostprune   which images of a Docker Engine may go
    | clients     the files by which clients ask the cache
    | warming     pulls images through the running cache before somebody needs them
    ports         what the rest asks of a store and an index, as Protocols
    | observe     figures, metrics, logs, history, notices
    | settings    what can be set, and where it comes from
    access        who may ask for what: networks, logins, rules
    runtime       threads, background loops, shared work, systemd
    model         values and small tools that know nothing of the rest
"""

# Here too, not looked up in the installed metadata: that took a tenth of the time of a start.
__version__ = "0.2.0"
