"""What the server counts, in a registry of its own: `GET /metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, math.inf)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, math.inf)


class Metrics:
    """The counters, by the names that Prometheus knows them by.

    Args:
        admitted: Gives how many pictures are taken in now.
        held: Gives how many bytes of bodies are held now.
    """

    kind = CONTENT_TYPE_LATEST

    def __init__(self, admitted: Callable[[], float], held: Callable[[], float]):
        self.registry = every = CollectorRegistry()
        ProcessCollector(registry=every)
        PlatformCollector(registry=every)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=every)

        def histogram(name: str, text: str, label: str, buckets: Any) -> Histogram:
            return Histogram(name, text, (label,), registry=every, buckets=buckets)

        self.requests = counter("van_requests_total", "Answers sent.", "path", "status")
        self.refusals = counter("van_refusals_total", "Requests not served, by reason.", "reason")
        self.pictures = counter("van_pictures_total", "Pictures of requests.", "model", "outcome")
        self.bytes = counter("van_upload_bytes_total", "Bytes of bodies received.")
        self.reloads = counter("van_reloads_total", "Models opened anew.", "model", "outcome")
        self.seconds = histogram(
            "van_request_seconds", "From the head of a request to its answer.", "path", _SECONDS
        )
        self.batches = histogram(
            "van_batch_pictures", "Pictures that went through a model at once.", "model", _PICTURES
        )
        self.models = Gauge(
            "van_model_info",
            "1 for each model served.",
            ("model", "title", "engine", "precision"),
            registry=every,
        )
        for name, text, value in (
            ("van_queue_pictures", "Pictures taken in and not answered.", admitted),
            ("van_upload_held_bytes", "Bytes of bodies in memory.", held),
        ):
            Gauge(name, text, registry=every).set_function(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
