"""What stands for a model in metrics: the pattern of the settings that took it, or its name.

Promises: a name becomes a label only once its upstream has answered a request for it with success, so what clients make
up does not; and there are no more names than the settings allow. What comes beyond them is under its pattern.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
_LONGEST = 128


class ModelLabels:
    """One per process. `most` is how many names there may be, 0 for patterns alone; `patterns` are all of the
    settings'."""

    def __init__(self, most: int = 0, patterns: Iterable[str] = ()) -> None:
        self._most = most
        self._patterns = frozenset(patterns)
        self._names: set[str] = set()

    def of(self, pattern: str, model: str) -> str:
        """The label of a request for this model."""
        return model if model in self._names else pattern

    def accepted(self, model: str) -> None:
        """An upstream has answered a request for this model, under its name there, with success."""
        if model not in self._names and len(self._names) < self._most and self._is_fit(model):
            self._names.add(model)

    def of_another(self, label: str) -> str:
        """The label of a stream that another replica has begun, as its log says."""
        if not self._most or label in self._patterns:
            return label
        self.accepted(label)
        return label if label in self._names else OTHER

    @staticmethod
    def _is_fit(model: str) -> bool:
        return 0 < len(model) <= _LONGEST and model.isascii() and model.isprintable()
