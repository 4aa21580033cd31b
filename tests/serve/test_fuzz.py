"""Damaged requests of every kind: answered or waited for, and none a mistake of the server."""

import asyncio
import json
import random
import re

import pytest

from .conftest import picture
from .test_connections import Running, post
from .test_protocol import IMAGES, binary, images

_FORM = "Content-Type: multipart/form-data; boundary=xyz"
_PART = b'--xyz\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'


def seeds():
    """Whole requests, one of each kind."""
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = picture(kind=kind)
        yield post(data, "Content-Type: image/png", path="/predict?top=3")
        yield post(_PART + data + b"\r\n" + _PART + data + b"\r\n--xyz--", _FORM)
    infer = "/v2/models/digits/infer"
    yield post(json.dumps({"id": "a", "inputs": [images()]}).encode(), path=infer)
    given = images(parameters={"binary_data_size": IMAGES.nbytes})
    del given["data"]
    record = {"inputs": [given], "outputs": [{"name": "logits", "parameters": {}}]}
    sent = binary(record, IMAGES.tobytes())
    ((name, value),) = sent["headers"].items()
    yield post(sent["content"], f"{name}: {value}", path=infer)
    data = b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    yield data % (len(picture()), picture())
    for path in ("/about", "/labels?model=digits", "/metrics", "/v2/models/digits", "/docs"):
        yield f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n".encode()


WORDS = (
    *(b"\r\n", b"\0", b"\xff\xff\xff\xff", b"-1", b"9" * 40, b"NaN", b"null", b"[" * 3_000, b"{"),
    *(b"--xyz", b"--xyz--", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"%00"),
    *(
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\nConnection: upgrade\r\n",
        b"?top=%ff&&=",
        b'"',
    ),
)


def mutant(rng, whole):
    """One of them, damaged in a few places."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        # Half of the damage where the head and the JSON are.
        at = rng.randrange(min(len(data), 400) if rng.random() < 0.5 else len(data)) if data else 0
        length = rng.choice((1, 1, 4, 30, 500))
        how = rng.randrange(6)
        if how == 0:
            data[at : at + length] = rng.randbytes(length)
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = data[at : at + length] * 2
        elif how == 3:
            data[at:at] = rng.choice(WORDS)
        elif how == 4:
            del data[at:]
        elif data:
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def with_right_length(rng, data):
    """Mostly with the length that it has now, so that the body is looked at."""
    head, mark, body = data.partition(b"\r\n\r\n")
    if rng.random() < 0.3:
        return data
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + mark + body


async def statuses_of(address, data, patience):
    """Of what was answered; the server may wait for more, and is left then."""
    reader, writer = await asyncio.open_connection(*address)
    found = b""
    try:
        async with asyncio.timeout(patience):
            writer.write(data)
            while more := await reader.read(65_536):
                found += more
                if b'"results"' in found or b'"error"' in found:
                    break
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return [int(one) for one in re.findall(rb"HTTP/1.1 (\d{3}) ", found)]


def damaged(running, count, seed):
    """Sends so many; the statuses of their answers."""
    rng, whole = random.Random(seed), list(seeds())  # noqa: S311 - repeatable

    async def send(mutants):
        work = (statuses_of(running.address, one, 0.6) for one in mutants)
        return [status for found in await asyncio.gather(*work) for status in found]

    found = []
    for start in range(0, count, 60):
        size = min(60, count - start)
        found += asyncio.run(
            send([with_right_length(rng, mutant(rng, rng.choice(whole))) for _ in range(size)])
        )
    return found


def check(running, count, seed):
    statuses = damaged(running, count, seed)
    assert len(statuses) > count / 2
    assert not [one for one in statuses if one >= 500 and one != 503], seed
    text = running.app.service.metrics.text().decode()
    assert 'status="500"' not in text
    (after,) = asyncio.run(whole_answer(running))
    assert after == 200


async def whole_answer(running):
    service = running.app.service
    async with asyncio.timeout(20):
        while service.uploads.held or service.admission.count:
            await asyncio.sleep(0.02)
    return await statuses_of(running.address, post(), 20)


@pytest.fixture(scope="module")
def running():
    one = Running()
    yield one
    one.end()


def test_damaged_requests(running):
    check(running, 300, seed=0)


@pytest.mark.slow
def test_many_damaged_requests(running, thorough):
    for seed in range(10):
        check(running, 1_000 if thorough else 300, seed=seed + 1)
