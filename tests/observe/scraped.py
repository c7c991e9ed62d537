"""What a relay's metrics address says, as Prometheus would read it."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.processes import RelayProcess
from tests.support.waiting import wait_until

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Scrape:
    """All samples of one moment."""

    families: list[Metric]

    def value(self, name: str, **labels: str) -> float:
        """The sum over all series of that name and those labels."""
        return sum(
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def series(self) -> set[str]:
        return {
            f"{sample.name}{sorted(sample.labels.items())}" for family in self.families for sample in family.samples
        }

    def labels(self, name: str, label: str) -> dict[str, float]:
        """The values of one label with what is counted under each, zeros left out."""
        found: dict[str, float] = {}
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and sample.value:
                    found[sample.labels[label]] = found.get(sample.labels[label], 0) + sample.value
        return found

    def exemplars(self, name: str) -> set[str]:
        return {
            sample.exemplar.labels["stream_id"]
            for family in self.families
            for sample in family.samples
            if sample.name == f"{name}_bucket" and sample.exemplar is not None
        }

    def bucket(self, name: str, seconds: float) -> int:
        """The number of the bucket that a value falls into."""
        edges = sorted(
            {
                float(sample.labels["le"])
                for family in self.families
                for sample in family.samples
                if sample.name == f"{name}_bucket"
            }
        )
        return next(i for i, edge in enumerate(edges) if seconds <= edge)


def scrape_text(relay: RelayProcess) -> str:
    request = urllib.request.Request(
        f"{relay.metrics_url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    with _DIRECT.open(request, timeout=5) as answer:
        return str(answer.read().decode())


def scrape(relay: RelayProcess) -> Scrape:
    return Scrape(list(text_string_to_metric_families(scrape_text(relay))))


def until(relay: RelayProcess, holds: Callable[[Scrape], bool], what: str, timeout: float = 15.0) -> Scrape:
    """The first scrape that shows it."""
    last: list[Scrape] = []

    def seen() -> bool:
        last[:] = [scrape(relay)]
        return holds(last[0])

    wait_until(seen, timeout, what)
    return last[0]
