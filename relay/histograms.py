"""Histograms of what happens thousands of times a second."""

from __future__ import annotations

import time
from bisect import bisect_left

from prometheus_client import Histogram
from prometheus_client.samples import Exemplar


class UncheckedHistogram(Histogram):
    """One that is told a lot: what is observed is not checked, and what is only counted is handed on by `flush`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._counts, self._total = [0] * len(self._upper_bounds), 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._sum.inc(amount)
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        bucket.inc(1)
        if exemplar is not None:
            bucket.set_exemplar(Exemplar(exemplar, amount, time.time()))

    def count(self, amount: float) -> None:
        self._counts[bisect_left(self._upper_bounds, amount)] += 1
        self._total += amount

    def flush(self) -> None:
        if any(self._counts):
            counts, total = self._counts, self._total
            self._counts, self._total = [0] * len(counts), 0.0
            for bucket, n in zip(self._buckets, counts, strict=True):
                if n:
                    bucket.inc(n)
            self._sum.inc(total)
