"""Metrics of `/metrics`, in the Prometheus format."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
SIZES = (0, 1, 2, 4, 8, 10, 16, 20, 32, 50, 64, 100)


class ServiceMetrics:
    """Metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter("adagrpo_requests", "Requests by route and status.", ["route", "status"])
        self.seconds = histogram(
            "adagrpo_request_seconds", "From headers read to answer handed over.", ["route"], buckets=SECONDS
        )
        self.waiting = gauge("adagrpo_waiting", "Requests that wait for the policy.")
        self.connections = gauge("adagrpo_connections", "Open connections.")
        self.batch = histogram("adagrpo_batch_size", "Requests worked on together.", buckets=SIZES)
        self.batch_seconds = histogram("adagrpo_batch_seconds", "Time of the policy for a batch.", buckets=SECONDS)
        self.length = histogram("adagrpo_list_length", "Items of a list.", buckets=SIZES)
        self.refused = counter("adagrpo_refused", "Requests and connections turned away, by why.", ["why"])
        self.fallbacks = counter("adagrpo_rerank_fallbacks", "Lists without the reward, which failed.")
        self.swaps = counter("adagrpo_swaps", "Exchanges of what is served, by outcome.", ["outcome"])
        self.feedback = counter("adagrpo_feedback", "Events of feedback, by kind.", ["kind"])
        self.not_logged = counter(
            "adagrpo_exposure_failures", "Writes that the exposure log failed; their lists were not sent."
        )
        self.errors = counter("adagrpo_errors", "Defects: requests that were answered 500.")
        self.version = gauge("adagrpo_version", "1 for what is served.", ["model", "catalog", "arm"])
        arm_lists = "Lists of an experiment, by arm, why the user got it, and source."
        self.arm_lists = counter("adagrpo_arm_lists", arm_lists, ["arm", "deal", "source"])
        self.arm_seconds = histogram(
            "adagrpo_arm_seconds", "From headers read to the row put on record, by arm.", ["arm"], buckets=SECONDS
        )
        self.arm_on = gauge("adagrpo_arm_on", "1 for an arm of the experiment, 0 once it was stopped.", ["arm"])
        self.trial_share = gauge("adagrpo_experiment_share", "Share of the users that the experiment reaches.")
        self._children: dict[tuple[str, int], Any] = {}
        self._versions: list[tuple[str, ...]] = []

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        pair = self._children.get((route, status))
        if pair is None:
            pair = (self.requests.labels(route, str(status)), self.seconds.labels(route))
            self._children[route, status] = pair
        pair[0].inc()
        pair[1].observe(seconds)

    def serves(self, model: str, catalog: str, arm: str) -> None:
        """Set the versions that are served."""
        for labels in self._versions:
            self.version.labels(*labels).set(0)
        self._versions = [*{*self._versions, (model, catalog, arm)}]
        self.version.labels(model, catalog, arm).set(1)

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return bytes(generate_latest(self.registry))
