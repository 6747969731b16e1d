"""What Prometheus is told: the server's own requests, and what the registry says of everything else.

Names and units follow Prometheus' conventions; docs/gateway.md lists them with examples of alerts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tunes_dagster import __version__
from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry.figures import Figures, Spent

# Reads are answered in a few milliseconds, uploads take as long as they take.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
# The registry is asked this often at most, however many scrape.
_FRESH_SECONDS = 10.0


class Meters:
    """The meters of one server."""

    def __init__(self, figures: Callable[[], Figures] | None = None) -> None:
        self.all = CollectorRegistry()
        self._requests = Counter(
            "tunes_http_requests",
            "Requests answered.",
            ("dialect", "method", "route", "status"),
            registry=self.all,
        )
        self._seconds = Histogram(
            "tunes_http_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ("dialect", "route"),
            buckets=_BUCKETS,
            registry=self.all,
        )
        if figures is not None:
            self.all.register(Stock(figures))

    def note(self, dialect: str, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; what met no endpoint is counted together, as callers make such names up."""
        self._requests.labels(dialect, method if route else "", route or "unmatched", str(status)).inc()
        self._seconds.labels(dialect, route or "unmatched").observe(seconds)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all of them in the format that a scraper accepts, and its content type."""
        encode, kind = choose_encoder(accept)
        return encode(self.all), kind


class Stock(Collector):
    """What the registry counts, asked when somebody scrapes."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._count = figures
        self._lock = threading.Lock()
        self._seen: tuple[float, Figures] | None = None

    def describe(self) -> list[Metric]:
        """Nothing beforehand: the registry is not asked before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        figures = self._figures()
        info = GaugeMetricFamily("tunes_build_info", "The version that runs.", labels=("version",))
        info.add_metric([__version__], 1)
        yield info
        yield _gauge("tunes_work_items", "Open work.", ("kind", "state"), figures.work)
        waiting = {
            kind: max(0.0, (figures.at - figures.oldest[kind]).total_seconds())
            if kind in figures.oldest
            else 0.0
            for kind in WorkKind
        }
        said = "How long the work that waits longest could have been running."
        yield _gauge("tunes_work_oldest_waiting_seconds", said, ("kind",), waiting)
        yield _gauge("tunes_tunes", "Tunes.", ("status",), figures.tunes)
        yield _gauge("tunes_prompts", "Prompts.", ("status",), figures.prompts)
        callbacks = {"pending": 0, "held": 0, "dead": 0, **figures.callbacks}
        yield _gauge("tunes_callbacks", "Callbacks that are not delivered.", ("state",), callbacks)
        yield GaugeMetricFamily(
            "tunes_credits_reserved_usd", "Held for open work.", value=figures.reserved / 1e6
        )
        yield _total(
            "tunes_training_steps", "Training steps done.", [(s.base, s.count) for s in figures.steps]
        )
        yield _total("tunes_training_seconds", "Seconds they took.", _seconds(figures.steps))
        yield _total(
            "tunes_render_pictures", "Pictures rendered.", [(s.base, s.count) for s in figures.pictures]
        )
        yield _total(
            "tunes_render_seconds", "Seconds they took, loading included.", _seconds(figures.pictures)
        )

    def _figures(self) -> Figures:
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > _FRESH_SECONDS:
                self._seen = (time.monotonic(), self._count())
            return self._seen[1]


def _seconds(rows: list[Spent]) -> list[tuple[str, float]]:
    return [(row.base, row.seconds) for row in rows]


def _gauge(name: str, said: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, said, labels=labels)
    for label, value in sorted(values.items()):
        family.add_metric([label] if isinstance(label, str) else list(label), value)
    return family


def _total(name: str, said: str, rows: list[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, said, labels=("base",))
    for base, value in sorted(rows):
        family.add_metric([base], value)
    return family
