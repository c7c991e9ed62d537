"""The part of the model that goes on: another replica takes A's stream over, and produces from there.

Its upstream is the same generation, so event n is the same whoever asks for it. The heir has read the log before it
takes it. What it is called when it, too, is lost is another heir: none of them differs from the first, so there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explorer import Move
from tests.model.producing import Producing
from tests.model.rules import Mutation
from tests.model.state import COMPLETED, FORCED, TOLD, Heir, State


class Succeeding(Producing):
    """Moves of who takes over, and of the heir."""

    def _may_succeed(self, s: State) -> bool:
        """Could somebody go on with it, for all that the log says?"""
        if not self.takeover or s.heir is not None or s.link == "away" or s.log is None or s.end:
            return False
        return not (self.terminal and len(s.log) == self.events)

    def others(self, s: State) -> Iterator[Move[State]]:
        if not self._may_succeed(s):
            yield from super().others(s)
        elif s.deciding:
            yield f"a takeover after {len(s.log or ())}", self._succeed(s._replace(deciding=False))
        elif s.lapsed and (not s.recent or self.broken(Mutation.RETURN_NOT_AWAITED)):
            if self.broken(Mutation.TAKEN_FROM_THE_LIVING):
                yield "another replica sees that the lease has lapsed", s._replace(deciding=True)
            else:
                yield f"a takeover after {len(s.log or ())}", self._succeed(s)

    def _succeed(self, s: State) -> State:
        if self.renewable(s) and not s.lapsed:
            return s._replace(wrong="TWO PRODUCERS: taken from one that lives")
        if s.stopped and not s.lost:
            return s._replace(wrong="STOPPED: what is taken over was stopped upstream, and nobody knows")
        log = s.log or ()
        at = 0 if self.broken(Mutation.POSITION_NOT_KEPT) else len(log)
        fenced = not self.broken(Mutation.TAKEOVER_LEAVES_FENCE)
        return s._replace(heir=Heir(log, at, len(log), len(log)), fenced=fenced, lapsed=False)

    # -- the heir -----------------------------------------------------------------------------------------

    @staticmethod
    def heir_lives(s: State) -> bool:
        return s.heir is not None and not (s.heir.ended or s.heir.fenced)

    def told_again(self, s: State) -> Iterator[Move[State]]:
        """What one of the two was told before, the upstream tells the other, too: that it goes on is fair."""
        yield from self._heir_upstream(s)
        if s.heir is not None:
            yield from self.upstream(s)

    def _heir_upstream(self, s: State) -> Iterator[Move[State]]:
        heir = s.heir
        if heir is None or not self.heir_lives(s) or heir.outcome:
            return
        if s.stopped:
            yield "the heir's upstream was stopped", s._replace(heir=heir._replace(outcome=FORCED))
        elif heir.upstream < self.events:
            made = (*heir.frames, heir.upstream + 1)
            last = self.terminal and heir.upstream + 1 == self.events
            outcome = COMPLETED if last else ""
            t = heir._replace(frames=made, upstream=heir.upstream + 1, outcome=outcome)
            yield "the upstream sends the heir an event", s._replace(heir=t)
        else:
            yield "the upstream ends the heir's stream", s._replace(heir=heir._replace(outcome=COMPLETED))

    def heir_moves(self, s: State) -> Iterator[Move[State]]:
        """While it lives and reaches the store it renews its lease, and writes what the log has not."""
        heir = s.heir
        if heir is None or not self.heir_lives(s) or s.link == "away":
            return
        made = len(heir.frames)
        if s.log is None:
            t = s._replace(log=(), fenced=True, lapsed=False, recent=False, heir=heir._replace(acked=0))
            yield "the heir makes the stream again", t
            return
        if self.broken(Mutation.LOST_TAKEOVER_IS_FENCED_OFF) and not s.fenced:
            yield "the heir is told FENCED", s._replace(heir=heir._replace(fenced=True))
            return
        top = len(s.log)
        if s.end:
            yield "the heir finds it ended", s._replace(heir=heir._replace(ended=True))
        elif heir.acked < made or heir.outcome:
            if top != heir.acked:
                yield f"the heir appends: MISMATCH {top}", s._replace(heir=heir._replace(acked=min(top, made)))
            else:
                log = s.log + heir.frames[top:]
                t = s._replace(log=log, end=heir.outcome)
                t = t._replace(heir=heir._replace(acked=made, ended=bool(heir.outcome)))
                yield f"the heir appends {top + 1}..{made} {heir.outcome}", self.published(t)
        renewed = s._replace(lapsed=False, recent=False, fenced=True)
        if top < heir.acked:
            renewed = renewed._replace(heir=heir._replace(acked=top))
        if renewed != s and not self.broken(Mutation.TAKEOVER_LEAVES_FENCE):
            yield f"the heir renews: {top}", renewed

    # -- what becomes of A --------------------------------------------------------------------------------

    def append(self, s: State, expected: int, upto: int, outcome: str) -> tuple[State, str, int]:
        t, code, top = super().append(s, expected, upto, outcome)
        if t != s and self.heir_lives(s) and not s.lost:
            t = t._replace(wrong="TWO PRODUCERS: who was taken over writes on")
        return t, code, top

    def _ends(self, s: State, outcome: str) -> State:
        """What A has ended itself it has the upstream stop: once the log has its end, and nobody can go on with it."""
        t = super()._ends(s, outcome)
        return self._stop(t) if outcome == TOLD and self.broken(Mutation.STOPPED_BEFORE_ITS_END) else t

    def _appended(self, s: State, code: str, top: int) -> State:
        t = super()._appended(s, code, top)
        if (t.mode == "ended" and t.outcome == TOLD) or (t.mode == "fenced" and self.broken(Mutation.FENCED_STOPS)):
            t = self._stop(t)
        return t

    def _renew(self, s: State) -> Iterator[Move[State]]:
        for name, t in super()._renew(s):
            stops = t.mode == "fenced" and self.broken(Mutation.FENCED_STOPS)
            yield name, self._stop(t) if stops else t

    def _stop(self, s: State) -> State:
        if not self.takeover:
            return s
        if self.heir_lives(s) and not s.lost:
            return s._replace(wrong="STOPPED: an answer that another replica goes on with")
        return s._replace(stopped=True)

    def store(self, s: State) -> Iterator[Move[State]]:
        """An heir that lives renews before a lease has passed."""
        for name, t in super().store(s):
            waits = (t.lapsed and not s.lapsed) or (s.recent and not t.recent)
            if not (waits and self.heir_lives(s) and s.link != "away"):
                yield name, t

    def _force_end(self, s: State) -> State:
        if s.heir is not None and (s.heir.fenced or (self.heir_lives(s) and not s.lapsed)):
            return s._replace(wrong="FALSE END: of a stream whose heir lives")
        return super()._force_end(s)
