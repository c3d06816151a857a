"""A Docker Hub look-alike in front of a real registry: it misbehaves on demand and counts everything.

In a test, ask for the ``hub`` fixture::

    async def test_something(hub):
        image = await hub.images.image("library/mine", "1", [1000, 50_000])
        hub.faults.add(Fault(service="cdn", reset_after_bytes=1000, times=1))
        ...  # pull hub.url, trusting hub.ca_file
        assert hub.counters.blob_gets(image.layers[0].digest) == 2

As a process: ``python -m tests.hub --help``, with ``tests.hub.client`` to steer it.
"""

from .behaviour import Behaviour
from .content import Descriptor
from .counters import Record
from .faults import Fault
from .hub import Hub
from .images import Image, Index
from .origin import OriginRegistry

__all__ = ["Behaviour", "Descriptor", "Fault", "Hub", "Image", "Index", "OriginRegistry", "Record"]
