"""The collector of garbage looks through all that lives only while nothing runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from relay import garbage


class Circle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def spared() -> Iterator[None]:
    before = gc.get_threshold()
    garbage.spare_what_lives()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("spared")
def test_a_burst_of_objects_that_stay_has_no_full_collection() -> None:
    full = gc.get_stats()[2]["collections"]
    there = [[n] for n in range(600_000)]
    assert gc.get_stats()[2]["collections"] == full
    assert len(there) == 600_000


@pytest.mark.usefixtures("spared")
def test_what_has_grown_old_before_it_became_garbage_is_found_while_nothing_runs() -> None:
    circle = Circle()
    there = weakref.ref(circle)
    gc.collect(0)
    gc.collect(1)  # it is among the old now
    del circle
    gc.collect(1)
    assert there() is not None
    garbage.collect_while_idle()
    assert there() is None


@pytest.mark.usefixtures("spared")
def test_where_nothing_can_be_found_nothing_is_looked_through() -> None:
    gc.collect()
    full = gc.get_stats()[2]["collections"]
    for _ in range(5):
        garbage.collect_while_idle()
    assert gc.get_stats()[2]["collections"] == full
