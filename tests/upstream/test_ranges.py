"""Answers to a question for a part of a blob: what continues it, what is the whole, and everything else."""

import pytest

from registry_cache.model.errors import RangeRefused, RateLimited, UpstreamError
from tests.hub import Fault

SIZE = 200_000
START = 1000


@pytest.fixture
async def blob(hub):
    image = await hub.images.image("library/ranged", "1", [SIZE])
    return image.layers[0].digest


REFUSALS = {
    **{
        f"status {status}": {"status": status}
        for status in (203, 207, 304, 400, 401, 403, 404, 405, 406, 410, 412, 416, 451, 501, 505)
    },
    "multipart": {"headers": {"Content-Type": "multipart/byteranges; boundary=x"}, "drop_headers": ("Content-Range",)},
    "no total": {"headers": {"Content-Range": f"bytes {START}-{SIZE - 1}/*"}},
    "no Content-Range": {"drop_headers": ("Content-Range",)},
    "another unit": {"headers": {"Content-Range": f"items {START}-{SIZE - 1}/{SIZE}"}},
    "nonsense": {"headers": {"Content-Range": "bytes"}},
    "a web page": {"status": 200, "body": "<html>", "headers": {"Content-Type": "text/html"}},
    "an empty 200": {"status": 200, "body": ""},
    "from elsewhere": {"range_start_shift": -5},
    "from beyond": {"range_start_shift": 5},
    "not what its length says": {"headers": {"Content-Range": f"bytes {START}-{SIZE - 2}/{SIZE}"}},
}


@pytest.mark.parametrize("service", ["registry", "cdn"])
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_anything_but_the_part_or_the_whole_is_a_refused_range(ask, hub, blob, refusal, service):
    hub.behaviour.redirect_blobs = service == "cdn"
    hub.faults.add(Fault(service=service, kind="blob", **REFUSALS[refusal]))
    client = ask()
    with pytest.raises(RangeRefused):
        await client.blob("library/ranged", blob, start=START)
    with pytest.raises(RangeRefused):
        await client.blob("library/ranged", blob, start=START, stop=START + 10)


async def test_the_part_and_the_whole_are_taken(ask, hub, blob):
    client, content = ask(), hub.images.read(blob)
    assert await client.blob("library/ranged", blob, start=START) == content[START:]
    assert await client.blob("library/ranged", blob, start=START, stop=2 * START) == content[START : 2 * START]
    hub.faults.add(Fault(service="cdn", ignore_range=True))
    assert await client.blob("library/ranged", blob, start=START) == content


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_trouble_is_no_refusal_of_the_range(ask, hub, blob, status):
    hub.faults.add(Fault(service="cdn", status=status))
    with pytest.raises(UpstreamError) as raised:
        await ask().blob("library/ranged", blob, start=START)
    assert not isinstance(raised.value, RangeRefused)
    assert isinstance(raised.value, RateLimited) == (status == 429)


async def test_who_asks_for_the_whole_has_no_range_refused(ask, hub, blob):
    hub.faults.add(Fault(service="cdn", status=400))
    with pytest.raises(UpstreamError) as raised:
        await ask().blob("library/ranged", blob)
    assert not isinstance(raised.value, RangeRefused)
