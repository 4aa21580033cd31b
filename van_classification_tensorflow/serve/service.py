"""What all handlers of requests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..support.text import shown
from .http import HttpError, Request
from .limits import Admission, Limits, Uploads
from .metrics import Metrics
from .models import Call, Models, Served


@dataclass
class Service:
    """The models, and what may be asked of them.

    Args:
        models: What is served.
        limits: Of requests.
        admission: Of the pictures.
        uploads: Of the bytes.
        metrics: Where it is counted.
    """

    models: Models
    limits: Limits
    admission: Admission
    uploads: Uploads
    metrics: Metrics

    def model(self, name: str) -> Served:
        """The model of a name, "" the default.

        Raises:
            HttpError: 404.
        """
        try:
            return self.models[name]
        except KeyError:
            there = ", ".join(one.name for one in self.models.all)
            raise HttpError(404, f"the models here are {there}. Received: {shown(name)}") from None

    def call(self, request: Request) -> Call:
        """For what a request wants computed, from now on."""
        return Call(time.monotonic() + self.limits.timeout, lambda: request.gone)

    async def in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something in a thread of the decoders."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.models.decoders, function, *arguments)

    async def decoded(
        self, model: Served, data: bytes | memoryview, call: Call
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """`Served.prepare`, in a thread of the decoders."""
        return await self.in_pool(model.prepare, data, call)
