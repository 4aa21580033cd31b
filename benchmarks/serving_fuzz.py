"""Requests changed at random, of a seed: what strangers and broken clients send to `van serve`."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serving_bench import TOKEN, Bench, Part, alike, answers_now, results_of, told, told_answer
from serving_client import Address, Answer, Client, multipart, request_bytes, run
from serving_server import watched

BOUNDARY = multipart([])[1].partition("boundary=")[2].encode()
NUMBERS = ("-1", "0", "1e9", "NaN", "99999999999999999999", "0x10", "", "1.5", "+3", "%00", "'")
LENGTHS = ("-1", "0", "7", "99999999999", "abc", "1e3", "", "18446744073709551616", "5, 5")
PATHS = (
    "/",
    "/about",
    "/labels",
    "/labels?model={v}",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v2",
    "/v2/health/live",
    "/v2/models/{m}",
    "/v2/models/{v}",
    "/v2/models/{m}/versions/{v}",
    "/v2/models/{m}/versions/1/infer",
    "/predict",
    "/predict?top={v}",
    "/predict?explain={v}",
    "/predict?explain=grad-cam&class={v}",
    "/predict?model={v}",
    "/../../etc/passwd",
    "//{v}",
    "/%2e%2e/{v}",
    "/{v}?{v}={v}",
)
MAGICS = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff\x08\x02\0\0\0",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x7f\xff\0\0\x7f\xff\x08\x02\0\0\0\0\0\0\0",
    b"GIF89a\xff\xff\xff\xff\xf7\0\0",
    b"RIFF\xff\xff\xff\x7fWEBPVP8X",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff",
    b"BM\xff\xff\xff\x7f\0\0\0\0",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\0\0\0 ftypavif",
    b"%PDF-1.7",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"PK\x03\x04",
    b"",
)


@dataclass(frozen=True)
class Mutator:
    """Makes requests of any kind, whole or broken.

    Args:
        address, model, token: Of the server.
        pictures: Good ones.
        kind: Their Content-Type.
        shape: Of the model's input (H, W, C).
    """

    address: Address
    model: str
    token: str
    pictures: list[bytes]
    kind: str
    shape: tuple[int, int, int]

    def requests(self, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
        """What was changed, and the bytes; the same for the same seed."""
        makers: tuple[Callable[[random.Random], bytes], ...] = (
            self.picture,
            self.parts,
            self.infer_json,
            self.infer_binary,
            self.line,
            self.head,
            self.anything,
        )
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            make = makers[number % len(makers)]
            yield make.__name__, make(draw)

    def _post(self, path: str, body: bytes, kind: str, **headers: str) -> bytes:
        return request_bytes(self.address, "POST", path, body, kind, self.token, **headers)

    def picture(self, draw: random.Random) -> bytes:
        """A changed picture in a good request."""
        return self._post("/predict", self._changed_picture(draw), self.kind)

    def _changed_picture(self, draw: random.Random) -> bytes:
        picture = draw.choice(self.pictures)
        if draw.random() < 0.2:
            return draw.choice(MAGICS) + draw.randbytes(draw.choice((0, 10, 3000)))
        return changed(draw, picture)

    def parts(self, draw: random.Random) -> bytes:
        """Changed multipart."""
        some = [self._changed_picture(draw) for _ in range(draw.choice((0, 1, 2, 3)))]
        body, kind = multipart(some, draw.choice(("pictures", "x", "", 'a"b', "\u00e4")))
        tricks: tuple[Callable[[], bytes], ...] = (
            lambda: changed(draw, body),
            lambda: body[: -draw.randrange(1, 45)],
            lambda: body.replace(b"\r\n", draw.choice((b"\n", b"\r", b"")), draw.randrange(1, 9)),
            lambda: body.replace(b"form-data", draw.choice((b"", b"attachment", b"x" * 20_000))),
            lambda: body.replace(b'filename="', b"filename*=utf-8''%ff%fe\"; filename=\""),
            lambda: (b"--" + BOUNDARY + b"\r\n\r\n\r\n") * draw.choice((1, 100, 3000)) + body,
            lambda: b"--" + BOUNDARY + b"\r\n" + b"X-A: b\r\n" * draw.choice((1, 5000)) + body,
            lambda: body.replace(b"Content-Type: image", b"Content-Type: multipart/mixed; a"),
            lambda: body,
        )
        body = draw.choice(tricks)()
        if draw.random() < 0.3:
            kind = draw.choice(
                (
                    "multipart/form-data",
                    "multipart/form-data; boundary=",
                    "multipart/form-data; boundary=" + "b" * 300,
                    'multipart/form-data; boundary="a-boundary',
                    "multipart/mixed; boundary=" + BOUNDARY.decode(),
                    "multipart/form-data; boundary=\xe4\xf6",
                    "text/plain",
                    "application/json",
                    "image/",
                    ";;;",
                )
            )
        top = draw.choice(NUMBERS) if draw.random() < 0.1 else "5"
        return self._post(f"/predict?top={top}", body, kind)

    def _infer(self) -> str:
        return f"/v2/models/{self.model}/infer"

    def _input(self, draw: random.Random, **changes: Any) -> dict[str, Any]:
        """A good one; of pixels of a large picture, which are many, not often."""
        if draw.random() < (0.5 if math.prod(self.shape) <= 4096 else 0.1):
            values: list[Any] = [0.5] * math.prod(self.shape)
            given = {"name": "images", "datatype": "FP32", "shape": [1, *self.shape]}
        else:
            files = [draw.choice((draw.choice(self.pictures), self._changed_picture(draw)))]
            values = [base64.b64encode(one).decode() for one in files * draw.choice((1, 1, 3))]
            given = {"name": "pictures", "datatype": "BYTES", "shape": [len(values)]}
        return given | {"data": values} | changes

    def infer_json(self, draw: random.Random) -> bytes:
        """A changed JSON body of the Open Inference Protocol."""
        odd: tuple[Any, ...] = (
            None,
            True,
            -1,
            2**70,
            1e308,
            float("nan"),
            float("inf"),
            "",
            "\ud800",
            [],
            [[]],
            {},
            [None],
            ["a"],
            [2**63] * 4,
            [-1, 2, 2, 3],
            [1 << 40, 1 << 40],
            "x" * 100_000,
        )
        changes = {}
        if draw.random() < 0.4:
            name = draw.choice(("name", "datatype", "shape", "data", "parameters"))
            changes[name] = draw.choice(odd)
        given = self._input(draw, **changes)
        record: Any = {"id": "7", "inputs": [given], "outputs": [{"name": "logits"}]}
        choice = draw.randrange(15)  # by the last ones it stays
        if choice == 0:
            record = draw.choice(odd)
        elif choice == 1:
            record[draw.choice(("inputs", "outputs", "id", "parameters"))] = draw.choice(odd)
        elif choice == 2:
            record["inputs"] = [given] * draw.choice((0, 2, 50))
        elif choice == 3:
            record["outputs"] = [{"name": draw.choice(odd)}] * draw.choice((1, 2, 50))
        text = json.dumps(record)
        if choice == 4:
            text = "[" * draw.choice((100, 100_000)) + text
        elif choice == 5:
            text = '{"inputs":' * draw.choice((50, 50_000)) + "1"
        elif choice == 6:
            text = text.replace(
                "0.5", draw.choice(("1e999", "-", "0" * 5000, "NaN", '"a"', "9" * 5000)), 1
            )
        body = text.encode("utf-8", "surrogatepass")
        if choice == 7:
            body = changed(draw, body)
        elif choice == 8:
            body = text.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")), "replace")
        return self._post(self._infer(), body, "application/json")

    def infer_binary(self, draw: random.Random) -> bytes:
        """A changed binary body of the same."""
        pictures = [self._changed_picture(draw) for _ in range(draw.choice((1, 1, 2, 3)))]
        data = b"".join(struct.pack("<I", len(one)) + one for one in pictures)
        kind, shape = "BYTES", [len(pictures)]
        if draw.random() < 0.3:
            kind, shape = "FP32", [1, *self.shape]
            count = self.shape[0] * self.shape[1] * self.shape[2]
            data = struct.pack("<f", draw.choice((0.5, float("nan"), 3e38))) * count
        size: Any = len(data)
        if draw.random() < 0.3:
            size = draw.choice((len(data) - 1, 0, -1, 2**40, "a", None))
        name = "pictures" if kind == "BYTES" else "images"
        given = {"name": name, "datatype": kind, "shape": shape}
        given["parameters"] = {"binary_data_size": size}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        if draw.random() < 0.2:
            data = changed(draw, data)
        if draw.random() < 0.2:
            data = struct.pack("<I", draw.choice((0, 2**31, 2**32 - 1))) + data[4:]
        length = str(len(head)) if draw.random() < 0.7 else draw.choice(LENGTHS)
        return self._post(
            self._infer(),
            head + data,
            "application/octet-stream",
            Inference_Header_Content_Length=length,
        )

    def line(self, draw: random.Random) -> bytes:
        """Any path with any method."""
        path = draw.choice(PATHS).format(m=self.model, v=draw.choice((*NUMBERS, "%ff", "a" * 5000)))
        method = draw.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"))
        body = draw.choice((b"", b"{}", b"x", self.pictures[0]))
        kind = draw.choice(("", self.kind, "application/json", "text/plain"))
        token = draw.choice((self.token, self.token, None, "wrong", "\xff"))
        return request_bytes(self.address, method, path.replace(" ", "%20"), body, kind, token)

    def head(self, draw: random.Random) -> bytes:
        """A good picture under a changed head."""
        good = self._post("/predict", draw.choice(self.pictures), self.kind)
        end = good.index(b"\r\n\r\n")
        lines, body = good[:end].split(b"\r\n"), good[end:]
        length = next(i for i, line in enumerate(lines) if line.startswith(b"Content-Length"))
        at = draw.randrange(len(lines))
        choice = draw.randrange(9)
        if choice == 0:
            lines[at] = changed(draw, lines[at])
        elif choice == 1:
            lines.insert(at, draw.choice(lines))
        elif choice == 2:
            del lines[at]
        elif choice == 3:
            lines[length] = b"Content-Length: " + draw.choice(LENGTHS).encode()
        elif choice == 4:
            lines.append(b"Transfer-Encoding: " + draw.choice((b"chunked", b"gzip", b"x, chunked")))
        elif choice == 5:
            lines.append(b"X-Long: " + b"a" * draw.choice((1000, 70_000, 300_000)))
        elif choice == 6:
            lines += [b"X-%d: a" % i for i in range(draw.choice((50, 5000)))]
        elif choice == 7:
            lines.append(
                draw.choice(
                    (
                        b"Expect: 100-continue",
                        b"Expect: x",
                        b"Upgrade: websocket\r\nConnection: Upgrade",
                        b"Upgrade: h2c",
                        b" folded",
                        b"no colon",
                        b"A\0: b",
                        b"Host: x",
                    )
                )
            )
        else:
            lines[0] = draw.choice(
                (
                    b"POST /predict HTTP/1.0",
                    b"POST /predict HTTP/2.0",
                    b"POST /predict",
                    b"PRI * HTTP/2.0",
                    b"\x16\x03\x01\x02\0",
                    b"POST http://[::1 HTTP/1.1",
                    b"",
                )
            )
        return b"\r\n".join(lines) + body

    def anything(self, draw: random.Random) -> bytes:
        """Changes anywhere in a whole request."""
        make = draw.choice(
            (self.picture, self.parts, self.infer_json, self.infer_binary, self.line)
        )
        return changed(draw, make(draw))


def changed(draw: random.Random, data: bytes) -> bytes:
    """Some bytes are flipped, cut out, repeated, put in, or the end is missing."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(found) + 1)
        choice = draw.randrange(6)
        if choice == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif choice == 1:
            del found[at : at + draw.choice((1, 4, 100))]
        elif choice == 2:
            found[at:at] = found[at : at + draw.choice((1, 16, 200))]
        elif choice == 3:
            found[at:at] = draw.randbytes(draw.choice((1, 4, 50)))
        elif choice == 4:
            found[at : at + 4] = draw.choice(
                (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\r\n\r\n", b"\x7f\xff")
            )
        elif draw.random() < 0.3:
            del found[at:]
    return bytes(found)


WHOLE = ("picture", "parts", "infer_json", "infer_binary", "line")  # need an answer, whatever it is
PATIENCE_S = 2.0  # with the others, which may promise more than they have: then no more is sent
SLOW_S = 5.0  # an answer may not take longer
HANG_S = 40.0  # after which it hangs


async def provoke(address: Address, data: bytes, whole: bool) -> Answer:
    """Sends anything and waits until it is answered or the connection ends.

    Of what is not whole this says after a while that there is no more; its time counts from there.
    """
    client, begun = Client(address), time.perf_counter()
    try:
        connection = await client.connect()
    except OSError:
        return Answer("refused")
    waiting = connection.send(data)
    done, _ = await asyncio.wait([waiting], timeout=HANG_S if whole else PATIENCE_S)
    if not done and not whole:
        connection.half_close()
        begun = time.perf_counter()
        done, _ = await asyncio.wait([waiting], timeout=HANG_S)
    connection.close()
    answer = waiting.result() if done else Answer("timeout")
    answer.seconds = time.perf_counter() - begun
    return answer


def is_bad(answer: Answer, whole: bool) -> bool:
    """Whether a server may not do this to a changed request."""
    if answer.outcome == "answered":
        return answer.status == 500 or answer.seconds > SLOW_S
    return whole or answer.outcome != "closed" or answer.seconds > SLOW_S


@watched
def fuzz(bench: Bench) -> Part:
    """Changed requests, with good ones among them that must be answered as before."""
    part, controls, slowest = Part(), Counter[str](), {"changed": 0.0, "good": 0.0}
    kinds: dict[str, Counter[str]] = {}
    bad: list[dict[str, Any]] = []
    with bench.server() as server:
        about = json.loads(server.get("/about", TOKEN)[1])["models"][0]
        side = about["preprocessing"]["input_size"]
        channels = len(about["preprocessing"]["mean"])
        mutator = Mutator(
            server.address,
            about["name"],
            TOKEN,
            bench.files.pictures,
            bench.files.kind,
            (side, side, channels),
        )
        mutants = enumerate(mutator.requests(bench.seed, bench.mutants))
        expected = answers_now(bench, server.address)
        good = bench.singles(server.address)
        client = Client(server.address, HANG_S, keep_alive=False)

        async def control(which: int) -> None:
            answer = await client.ask(good[which])
            slowest["good"] = max(slowest["good"], answer.seconds)
            right = answer.status == 200 and alike(results_of(answer.body)[0], expected[which])
            controls["right" if right else told_answer(answer)] += 1

        async def one() -> None:
            for number, (kind, data) in mutants:
                if number % 100 == 0:
                    await control(number // 100 % len(good))
                answer = await provoke(server.address, data, kind in WHOLE)
                slowest["changed"] = max(slowest["changed"], answer.seconds)
                what = str(answer.status or answer.outcome)
                kinds.setdefault(kind, Counter())[what] += 1
                if is_bad(answer, kind in WHOLE):
                    record = {"number": number, "kind": kind, "what": what}
                    bad.append(record | {"s": answer.seconds, "begins": repr(data[:300])})

        async def all_of_them() -> None:
            await asyncio.gather(*(one() for _ in range(16)))

        run(all_of_them())
        ready, tracebacks, memory = server.is_ready(), server.tracebacks(), server.memory()
    found = sum(kinds.values(), Counter())
    part.details = {
        "kinds": {k: dict(sorted(v.items())) for k, v in kinds.items()},
        "bad": bad,
        "controls": dict(controls),
        "slowest_s": slowest,
        "tracebacks": tracebacks,
        "memory_after": memory,
    }
    fine = ready and not bad and set(controls) == {"right"} and slowest["good"] <= SLOW_S
    text = f"{told(dict(sorted(found.items())))}; {'ready' if ready else 'NOT READY'}, {tracebacks}"
    text += f" tracebacks in its log, good ones between: {told(dict(controls))}; slowest "
    text += f"{slowest['changed']:.2f} s, of the good {slowest['good']:.2f} s"
    if bad:
        text += f"; {len(bad)} bad, first: {bad[0]['kind']} number {bad[0]['number']}"
    what = f"{bench.mutants:,} changed requests (seed {bench.seed})"
    part.add(what, "no crash, hang, 500", text, fine and tracebacks == 0)
    return part
