"""Events as readers get them, of entries as the log holds them: the one place where the compact form is read.

What was taken from bases is kept for a while for whoever reads on, by stream and by binding: nobody is given what was
opened for another owner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from relay.encryption import Binding
from relay.protocol.compact import COMPACT, BaseMissing, Damaged, Restorer

# Each keeps a few hundred bytes for each kind of event.
_STREAMS_KNOWN = 1024
# A base may itself be in the compact form, where two replicas have written the same events, in turns.
_DEEPEST = 16

FrameOf = Callable[[int], Awaitable[bytes]]


class Restorers:
    """Of the streams that were read last."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, Binding], Restorer] = OrderedDict()

    def bases(self, stream: str, binding: Binding) -> Sequence[int]:
        """The bases that need not be looked up."""
        known = self._of.get((stream, binding))
        return () if known is None else known.bases

    async def restore(
        self,
        stream: str,
        binding: Binding,
        after: int,
        contents: list[bytes],
        bases: Mapping[int, bytes],
        look_up: FrameOf,
        room: int,
    ) -> tuple[list[bytes], bool]:
        """The frames of the events after a position, and whether one of them is damaged, which ends them.

        Args:
            contents: what their entries hold, in full or in the compact form. More than one only as far as they come
                to no more than `room`.
            bases: what the entries of earlier events hold.
            look_up: asks the log for one of these that is in none of them; empty where it is not there.
        """
        if not any(content.startswith(COMPACT) for content in contents):
            return contents, False
        restoring = _Restoring(self._restorer(stream, binding), after, bases)
        while True:
            try:
                return restoring.go_on(contents, room)
            except BaseMissing as missing:
                if len(restoring.looked_up) >= _DEEPEST:
                    return restoring.frames, True
                restoring.looked_up[missing.base] = await look_up(missing.base)

    def _restorer(self, stream: str, binding: Binding) -> Restorer:
        key = (stream, binding)
        found = self._of.get(key)
        if found is None:
            found = self._of[key] = Restorer(stream)
            if len(self._of) > _STREAMS_KNOWN:
                self._of.popitem(last=False)
        else:
            self._of.move_to_end(key)
        return found


class _Restoring:
    """A page's events on their way from entries to frames."""

    def __init__(self, restorer: Restorer, after: int, bases: Mapping[int, bytes]) -> None:
        self.frames: list[bytes] = []
        self.looked_up: dict[int, bytes] = {}
        self._restorer = restorer
        self._after = after
        self._bases = bases
        self._depth = 0

    def go_on(self, contents: Sequence[bytes], room: int) -> tuple[list[bytes], bool]:
        """Raises BaseMissing, after which it goes on where it was."""
        try:
            self._restorer.restore_all(self._after, contents, self.frames, self._frame_of, room)
        except Damaged:
            return self.frames, True
        return self.frames, False

    def _frame_of(self, n: int) -> bytes:
        """Raises Damaged, BaseMissing."""
        if n > self._after:
            return self.frames[n - self._after - 1]
        content = self._bases.get(n) or self.looked_up.get(n)
        if content is None:
            raise BaseMissing(n)
        if not content.startswith(COMPACT):
            return content
        if self._depth == _DEEPEST:
            raise Damaged
        self._depth += 1
        try:
            return self._restorer.restore(n, content, self._frame_of)
        finally:
            self._depth -= 1
