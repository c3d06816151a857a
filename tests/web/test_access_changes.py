"""Certificate and users change while clients pull: nobody notices."""

import asyncio
import ssl

import aiohttp
import bcrypt
import pytest
import trustme

from registry_cache.model import events

NAME = "org/app"
PULLS, CHANGES = 200, 10


@pytest.fixture
def authority():
    return trustme.CA()


async def test_200_pulls_while_certificate_and_users_change_ten_times(start_cache, hub, tmp_path, authority):
    image = await hub.images.image(NAME, "1", [1000, 100_000])
    cert, key, users = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "htpasswd"
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()

    def change(number):
        issued = authority.issue_cert("127.0.0.1")
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        users.write_text(f"ci:{hashed}\nother{number}:{hashed}\n")

    change(0)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    cache = await start_cache(
        client_tls=trusting, tls_cert=cert, tls_key=key, htpasswd=users, access=[{"users": ["ci"]}], hosts="*"
    )
    login = {"Authorization": aiohttp.encode_basic_auth("ci", "secret")}
    statuses = []

    async def pull():
        """As a client does: connections, a token and everything of its own."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
            async with session.get(f"{cache.url}/token?scope=repository:{NAME}:pull", headers=login) as answer:
                statuses.append(answer.status)
                bearer = {"Authorization": f"Bearer {(await answer.json())['token']}"}
            layers = [f"blobs/{layer.digest}" for layer in (image.config, *image.layers)]
            for path in ("manifests/1", *layers):
                async with session.get(f"{cache.url}/v2/{NAME}/{path}", headers=bearer) as answer:
                    statuses.append(answer.status)
                    assert len(await answer.read()) == int(answer.headers["Content-Length"])

    under_way = set()
    for number in range(PULLS):
        under_way.add(asyncio.create_task(pull()))
        if len(under_way) >= 8:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        if number % (PULLS // CHANGES) == 0:
            change(number + 1)
            cache.proxy.reload()
    await asyncio.gather(*under_way)
    assert statuses == [200] * (PULLS * (2 + 1 + len(image.layers)))
    assert len(cache.seen(events.CertificateLoaded)) >= CHANGES
    assert cache.seen(events.Warned) == []
