"""What an upstream's answer begins with, looked at before its client is answered: an error there is a refusal."""

from __future__ import annotations

from relay.protocol.dialect import Dialect, split_block
from relay.protocol.ends import Name, name_of
from relay.protocol.outcomes import StreamFailure
from relay.protocol.sse import Event, Parser
from relay.protocol.upstream_error import UpstreamError, read_unframed


class FirstEvent:
    """Keeps an answer's first bytes, until somebody takes them.

    `data` is all of them but for keep-alives, `ended` is True after their end. `refusal` is the error that they begin
    with, `no_answer` is True where they have ended, or say so, before anything of an answer.
    """

    def __init__(self, dialect: Dialect, max_event_bytes: int) -> None:
        self.data = b""
        self.ended = False
        self.refusal: UpstreamError | None = None
        self.no_answer = False
        self._watch = dialect.watch()
        self._parser = Parser(max_event_bytes, verbatim=self._watch.verbatim)
        self._known = False

    def feed(self, data: bytes) -> bool:
        """The next bytes. True once it is known what they begin with."""
        self.data += data
        if not self._known:
            try:
                for event in self._parser.feed(data):
                    if self._see(event, cut=False):
                        break
            except StreamFailure:
                self._known = True  # too large, or malformed: not for here to judge
            if not self._known and self._parser.idle:
                self.data = b""
        return self._known

    def end(self) -> None:
        """There are no more bytes."""
        self.ended = True
        if self._known:
            return
        held = self._parser.held
        try:
            event = self._parser.rest()
            if event is not None and self._see(event, cut=True):
                return
        except StreamFailure:
            pass
        self.no_answer = True
        self.refusal = read_unframed(held)

    def _see(self, event: Event, *, cut: bool) -> bool:
        try:
            return self._name(self._watch.see(event))
        except StreamFailure:
            parts = split_block(event, cut=cut)
            if not parts:
                raise
        return any(self._name(self._watch.see(part)) for part in parts)

    def _name(self, bits: int) -> bool:
        name = name_of(bits)
        if name is Name.KEEP_ALIVE:
            return False
        if name in (Name.ERROR, Name.FAILURE):
            self.refusal = self._watch.error
        self.no_answer = name is Name.DONE
        self._known = True
        return True
