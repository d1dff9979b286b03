"""Counters and gauges of `/metrics`, in the format of Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
SIZES = (0, 1, 2, 4, 8, 10, 16, 20, 32, 50, 64, 100)


class ServiceMetrics:
    """Counts of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "adagrpo_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "adagrpo_request_seconds", "From headers read to answer handed over.", ["route"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("adagrpo_waiting", "Requests that wait for the policy.", registry=registry)
        self.connections = Gauge("adagrpo_connections", "Open connections.", registry=registry)
        self.batch = Histogram("adagrpo_batch_size", "Requests worked on together.", buckets=SIZES, registry=registry)
        self.batch_seconds = Histogram(
            "adagrpo_batch_seconds", "Time of the policy for a batch.", buckets=SECONDS, registry=registry
        )
        self.length = Histogram("adagrpo_list_length", "Items of a list.", buckets=SIZES, registry=registry)
        self.refused = Counter(
            "adagrpo_refused", "Requests and connections turned away, by why.", ["why"], registry=registry
        )
        self.fallbacks = Counter(
            "adagrpo_rerank_fallbacks", "Lists in the policy's order as the reward failed.", registry=registry
        )
        self.swaps = Counter(
            "adagrpo_swaps", "Exchanges of what is served, by outcome.", ["outcome"], registry=registry
        )
        self.feedback = Counter("adagrpo_feedback", "Events of feedback, by kind.", ["kind"], registry=registry)
        self.not_logged = Counter(
            "adagrpo_exposure_failures", "Writes that the exposure log failed; their lists were not sent.",
            registry=registry,
        )  # fmt: skip
        self.errors = Counter("adagrpo_errors", "Defects: requests that were answered 500.", registry=registry)
        self.version = Gauge("adagrpo_version", "1 for what is served.", ["model", "catalog", "arm"], registry=registry)
        self.arm_lists = Counter(
            "adagrpo_arm_lists", "Lists of an experiment, by arm, why the user got it, and source.",
            ["arm", "deal", "source"], registry=registry,
        )  # fmt: skip
        self.arm_seconds = Histogram(
            "adagrpo_arm_seconds", "From headers read to the row put on record, by arm.", ["arm"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.arm_on = Gauge(
            "adagrpo_arm_on", "1 for an arm of the experiment, 0 once it was stopped.", ["arm"], registry=registry
        )
        self.trial_share = Gauge(
            "adagrpo_experiment_share", "Share of the users that the experiment reaches.", registry=registry
        )
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

    def of_arm(self, arm: str, deal: str, source: str) -> None:
        """Count a list of an experiment."""
        self.arm_lists.labels(arm, deal, source).inc()

    def turned_away(self, why: str) -> None:
        """Count a request or a connection that was not answered."""
        self.refused.labels(why).inc()

    def serves(self, model: str, catalog: str, arm: str) -> None:
        """Say what is served from now on."""
        for labels in self._versions:
            self.version.labels(*labels).set(0)
        self._versions = [*{*self._versions, (model, catalog, arm)}]
        self.version.labels(model, catalog, arm).set(1)

    def text(self) -> bytes:
        """All of it."""
        return bytes(generate_latest(self.registry))
