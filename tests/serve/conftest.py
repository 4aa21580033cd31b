"""A server of the bundled digits, without a process and without a socket."""

import asyncio
import io
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.serve.command import application
from van_classification_tensorflow.serve.request import ServeRequest


def picture(seed=0, size=(40, 30), kind="PNG", mode="RGB"):
    """The bytes of a picture of noise."""
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind)
    return file.getvalue()


class Client:
    """Asks an application, each request in an event loop that lives as long as this does."""

    def __init__(self, app):
        self.app = app
        self.runner = asyncio.Runner()
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=True),
            base_url="http://127.0.0.1",
        )

    def __call__(self, method, path, **options):
        return self.runner.run(self.http.request(method, path, **options))

    def get(self, path, **options):
        return self("GET", path, **options)

    def post(self, path, **options):
        return self("POST", path, **options)

    def together(self, *requests):
        """The answers to several (method, path, options) at once."""

        async def ask():
            asked = (self.http.request(how, path, **more) for how, path, more in requests)
            return await asyncio.gather(*asked)

        return self.runner.run(ask())


@pytest.fixture(scope="session")
def make_client():
    """Makes a client of a server with such options; models are opened once where they can be."""
    made = []

    def make(**options):
        request = ServeRequest(**{"weights": ("digits",), **options})
        made.append(Client(application(request)))
        return made[-1]

    yield make
    for one in made:
        one.runner.run(one.http.aclose())
        one.runner.close()


@pytest.fixture(scope="session")
def client(make_client):
    return make_client()


@pytest.fixture
def limited(client):
    """Sets limits of the client's server, for one test."""
    service = client.app.service
    before = service.limits

    def limit(**changes):
        service.limits = service.admission.limits = replace(before, **changes)

    yield limit
    service.limits = service.admission.limits = before
