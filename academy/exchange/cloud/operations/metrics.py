"""What an exchange tells Prometheus: read from what it keeps anyway, when asked.

Nothing on the way of a message calls the library. Numbers are per namespace; those of
namespaces beyond `MAX_NAMESPACES` are summed, so that users cannot make labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from academy.exchange.census import Census
from academy.exchange.store.measured import BOUNDS, Latency

MAX_NAMESPACES = 100
OTHERS = "(others)"
"""Label of the namespaces beyond those; none can be called that."""

_P = "academy_exchange"


@dataclass
class Numbers:
    """What is counted of a namespace, or of several in sum."""

    census: Census = field(default_factory=Census)
    connections: int = 0
    stored: int = 0
    settled: int = 0
    delivered: int = 0
    redelivered: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    quotas: dict[str, float] = field(default_factory=dict)
    throttles: int = 0
    throttled_seconds: float = 0.0
    committing: Latency = field(default_factory=Latency)
    reading: Latency = field(default_factory=Latency)

    def add(self, other: Numbers) -> None:
        """Sum up."""
        for name, value in vars(other).items():
            if isinstance(value, int | float):
                setattr(self, name, getattr(self, name) + value)
        self.refused.update(other.refused)
        for key, most in other.quotas.items():
            self.quotas[key] = self.quotas.get(key, 0) + most
        self.committing.merge(other.committing)
        self.reading.merge(other.reading)
        self.census.states.update(other.census.states)
        self.census.waiting += other.census.waiting
        self.census.waiting_bytes += other.census.waiting_bytes
        self.census.leased += other.census.leased


def capped(numbers: Iterable[tuple[str, Numbers]]) -> dict[str, Numbers]:
    """Sum up what is beyond the largest number of labels."""
    kept: dict[str, Numbers] = {}
    for namespace, own in numbers:
        name = namespace if len(kept) < MAX_NAMESPACES else OTHERS
        kept.setdefault(name, Numbers()).add(own)
    return kept


class Metrics(Collector):
    """Writes the metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._of_process = CollectorRegistry()
        self._now: dict[str, Numbers] = {}
        self._turned_away: Counter[str] = Counter()
        ProcessCollector(registry=self._of_process)
        self._registry.register(self)

    def text(self, now: dict[str, Numbers], turned_away: Counter[str] | None) -> bytes:
        """Return these numbers in Prometheus's text format.

        Args:
            now: per namespace.
            turned_away: attempts to connect, by reason. None leaves out what is not of
                a namespace, the process included.
        """
        self._now, self._turned_away = now, turned_away or Counter()
        text = generate_latest(self._registry)
        return text if turned_away is None else text + generate_latest(self._of_process)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        words = "Connections and requests that were turned away."
        away = CounterMetricFamily(f"{_P}_turned_away", words, labels=["reason"])
        for reason, count in self._turned_away.items():
            away.add_metric([reason], count)
        yield away
        words = "Time that the store took, per operation."
        labels = ["namespace", "operation"]
        took = HistogramMetricFamily(f"{_P}_store_seconds", words, labels=labels)
        for namespace, own in self._now.items():
            for operation, kept in (
                ("commit", own.committing),
                ("pending", own.reading),
            ):
                ends = (*map(str, BOUNDS), "+Inf")
                pairs = list(zip(ends, accumulate(kept.counts), strict=True))
                took.add_metric([namespace, operation], pairs, kept.seconds)
        yield took

    def _gauges(self) -> Iterator[Metric]:
        for name, words, values in (
            ("connections", "Clients that are connected.", "connections"),
            ("leases", "Messages delivered and not settled.", "leased"),
            ("queued_messages", "Messages in mailboxes.", "waiting"),
            ("queued_bytes", "Bytes of messages in mailboxes.", "waiting_bytes"),
        ):
            gauge = GaugeMetricFamily(f"{_P}_{name}", words, labels=["namespace"])
            for namespace, own in self._now.items():
                holder = own if hasattr(own, values) else own.census
                gauge.add_metric([namespace], getattr(holder, values))
            yield gauge
        words, labels = "Mailboxes, by what their owners do.", ["namespace", "state"]
        boxes = GaugeMetricFamily(f"{_P}_mailboxes", words, labels=labels)
        for namespace, own in self._now.items():
            for state in ("registered", "attached", "detached", "terminated"):
                boxes.add_metric([namespace, state], own.census.states[state])
        yield boxes
        words, labels = "What a namespace may have.", ["namespace", "quota"]
        quotas = GaugeMetricFamily(f"{_P}_quota", words, labels=labels)
        for namespace, own in self._now.items():
            for key, most in own.quotas.items():
                quotas.add_metric([namespace, key], most)
        yield quotas

    def _counters(self) -> Iterator[Metric]:
        for name, words, value in (
            ("messages_stored", "Messages taken and stored.", "stored"),
            ("messages_delivered", "Messages sent to their owners.", "delivered"),
            ("messages_redelivered", "Those an owner had before.", "redelivered"),
            ("messages_settled", "Messages that were dealt with.", "settled"),
            ("received_bytes", "Bytes from connections.", "received_bytes"),
            ("sent_bytes", "Bytes to connections.", "sent_bytes"),
            ("throttles", "Times that too much began to be sent.", "throttles"),
            ("throttled_seconds", "Time that was waited for it.", "throttled_seconds"),
        ):
            counter = CounterMetricFamily(f"{_P}_{name}", words, labels=["namespace"])
            for namespace, own in self._now.items():
                counter.add_metric([namespace], getattr(own, value))
            yield counter
        labels = ["namespace", "reason"]
        words = "Messages refused to their senders."
        refused = CounterMetricFamily(f"{_P}_messages_refused", words, labels=labels)
        for namespace, own in self._now.items():
            for reason, count in own.refused.items():
                refused.add_metric([namespace, reason], count)
        yield refused
