"""The half of the model that writes: the upstream, the producer on A, the store, and who ends a lost stream."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explorer import Move
from tests.model.rules import Mutation
from tests.model.state import COMPLETED, ERROR_FRAME, FORCED, TOLD, Rules, State

LIVING = ("writing", "ahead")


class Producing(Rules):
    """Moves of the upstream, the producer, the store and the other replicas."""

    # -- the upstream and the producer --------------------------------------------------------------------

    def upstream(self, s: State) -> Iterator[Move[State]]:
        if s.process != "running" or s.mode not in LIVING or s.outcome:
            return
        if s.made < self.events:
            shows = s.mode == "ahead" or self.broken(Mutation.SHOWN_BEFORE_APPEND)
            t = s._replace(made=s.made + 1, shown=s.made + 1 if shows else s.shown)
            last = self.terminal and t.made == self.events
            yield "the upstream sends an event", self._ends(t, COMPLETED) if last else t
        else:
            yield "the upstream ends its stream", self._ends(s, COMPLETED)

    def _ends(self, s: State, outcome: str) -> State:
        shows = s.mode == "ahead" and not self.broken(Mutation.END_NOT_SHOWN_AHEAD)
        return s._replace(outcome=outcome, end_shown=shows)

    def producer(self, s: State) -> Iterator[Move[State]]:
        if s.process == "paused":
            yield "A wakes", s._replace(process="running")
        if s.link == "cut off":
            yield "A reaches the store again", s._replace(link="up")
        if s.process != "running" or s.mode not in LIVING:
            return
        if s.link != "up":
            yield from self._hold(s)
        elif s.remaking:
            log = () if s.log is None else s.log
            yield "A makes the stream again", s._replace(remaking=False, log=log, acked=0, lapsed=False, recent=False)
        else:
            if s.acked < s.made or s.outcome:
                t, code, top = self.append(s, s.acked, s.made, s.outcome)
                yield f"A appends {s.acked + 1}..{s.made} {s.outcome}: {code} {top}", self._appended(t, code, top)
            yield from self._renew(s)

    def _hold(self, s: State) -> Iterator[Move[State]]:
        never = self.broken(Mutation.NEVER_AHEAD) or (s.remaking and self.broken(Mutation.REMAKING_NEVER_AHEAD))
        if s.mode == "writing" and (s.shown < s.made or s.outcome) and not never:
            t = s._replace(mode="ahead", shown=s.made, lost=True)
            yield "the hold is over: A shows ahead of its log", self._ends(t, s.outcome) if s.outcome else t

    def append(self, s: State, expected: int, upto: int, outcome: str) -> tuple[State, str, int]:
        """What the store makes of an append, and its answer."""
        if s.log is None:
            return s, "GONE", 0
        top = len(s.log)
        if s.fenced:
            return s, "FENCED", top
        if top != expected and not self.broken(Mutation.TOP_NOT_CHECKED):
            return s, "MISMATCH", top
        if s.end:
            return s, "OK", top
        t = s._replace(log=s.log + tuple(range(expected + 1, upto + 1)), end=outcome)
        return self.published(t), "OK", upto

    def _appended(self, s: State, code: str, top: int) -> State:
        """What the producer makes of the answer to an append of all that it has."""
        if code == "OK":
            if s.log is None or len(s.log) < s.made or (s.outcome and s.end != s.outcome):
                return s._replace(wrong="UNLOGGED: taken for written, and not in the log")
            mode = "ended" if s.outcome else "writing"
            return s._replace(acked=s.made, shown=s.made, mode=mode)
        if code == "MISMATCH":
            return self._know_top(s, top)._replace(mode="writing")
        if code == "GONE":
            return s if self.broken(Mutation.NOT_MADE_AGAIN) else s._replace(remaking=True)
        return s._replace(mode="fenced")

    def _know_top(self, s: State, top: int) -> State:
        top, lost = min(top, s.made), top < s.acked
        if self.broken(Mutation.REWIND_IGNORED if lost else Mutation.LOST_REPLY_IGNORED):
            return s
        return s._replace(acked=top, shown=max(s.shown, top))

    def _renew(self, s: State) -> Iterator[Move[State]]:
        """Where it changes anything."""
        if s.log is None:
            if not self.broken(Mutation.NOT_MADE_AGAIN):
                yield "A renews: GONE", s._replace(remaking=True)
            elif s.recent:
                yield "A renews: GONE", s._replace(recent=False)
        elif s.fenced:
            yield "A renews: FENCED", s._replace(mode="fenced")
        else:
            t = s._replace(lapsed=False, recent=False)
            top = len(s.log)
            if top < s.acked and not self.broken(Mutation.TOP_NOT_REPORTED):
                t = self._know_top(t, top)
            if t != s:
                yield f"A renews: OK {top}", t

    # -- the store, and who ends a lost stream ------------------------------------------------------------

    @staticmethod
    def renewable(s: State) -> bool:
        """Will A renew before a lease has passed?"""
        return s.process == "running" and s.link == "up" and s.mode in LIVING

    def store(self, s: State) -> Iterator[Move[State]]:
        if s.late is not None:
            yield "the late append is dropped", s._replace(late=None)
        if s.link == "away" and not self.outage_lasts:
            yield from self.store_returns(s)
        if not self.renewable(s):
            if not s.lapsed and s.log is not None and not s.end:
                yield "the lease lapses", s._replace(lapsed=True)
            if s.recent and s.link != "away":
                yield "the store is back for a lease", s._replace(recent=False)

    def store_returns(self, s: State) -> Iterator[Move[State]]:
        yield "the store is back", self._connected_anew(s._replace(link="up", recent=True))

    @staticmethod
    def _connected_anew(s: State) -> State:
        """A tail does not know what messages it has missed: it reads everything."""
        feed = s.feed
        return s if feed is None or not feed.subscribed else s._replace(feed=feed._replace(message="sent"))

    def late_append(self, s: State) -> Iterator[Move[State]]:
        if s.late is not None and s.link != "away":
            t, code, _ = self.append(s, *s.late)
            yield f"the late append is executed: {code}", t._replace(late=None)

    def others(self, s: State) -> Iterator[Move[State]]:
        """The script tests the lease again when it runs: nothing happens between the look and the forced end."""
        if s.link == "away" or s.log is None or s.end:
            if s.deciding:
                yield "the forced end comes to nothing", s._replace(deciding=False)
        elif s.deciding:
            yield f"a forced end after {len(s.log)}", self._force_end(s._replace(deciding=False))
        elif s.lapsed and (not s.recent or self.broken(Mutation.RETURN_NOT_AWAITED)):
            if self.broken(Mutation.LEASE_NOT_CHECKED):
                yield "another replica sees that the lease has lapsed", s._replace(deciding=True)
            else:
                yield f"a forced end after {len(s.log)}", self._force_end(s)

    def _force_end(self, s: State) -> State:
        if not (s.excused or s.mode == "ended") or (self.renewable(s) and not s.lapsed):
            return s._replace(wrong="FALSE END: of a stream whose producer lives")
        log = s.log or ()
        if self.broken(Mutation.END_TAKES_NUMBER):
            log = (*log, ERROR_FRAME)
        fenced = not self.broken(Mutation.FENCE_NOT_RAISED)
        whole = self.terminal and len(log) == self.events and not self.broken(Mutation.WHOLE_IS_LOST)
        return self.published(s._replace(log=log, end=COMPLETED if whole else FORCED, fenced=fenced))

    def published(self, s: State) -> State:
        """Whoever is subscribed to the stream's channel gets a message."""
        feed = s.feed
        if feed is None or not feed.subscribed or not feed.live:
            return s
        if feed.page is not None and self.broken(Mutation.MESSAGE_WHILE_READING_DROPPED):
            return s
        return s._replace(feed=feed._replace(message="sent"))

    # -- faults -------------------------------------------------------------------------------------------

    def producer_faults(self, s: State) -> Iterator[Move[State]]:
        """A client on A whose process is killed is cut."""
        if s.process == "dead" or (s.mode not in LIVING and s.at != "A"):
            return
        yield "FAULT A is killed", s._replace(process="dead", excused=True)
        if s.process == "paused" or s.mode not in LIVING:
            return
        yield "FAULT A is paused", s._replace(process="paused", excused=True)
        if s.link == "up":
            yield "FAULT A does not reach the store", s._replace(link="cut off", excused=True)
        if not s.outcome:
            yield "FAULT A ends the stream with an error of its own", self._ends(s, TOLD)
        if s.link == "up" and not s.remaking and (s.acked < s.made or s.outcome):
            t, code, _ = self.append(s, s.acked, s.made, s.outcome)
            if t != s:
                yield f"FAULT A appends {s.acked + 1}..{s.made}: {code}, and the reply is lost", t
            if s.late is None:
                yield "FAULT A's append waits in a frozen store's socket", s._replace(late=(s.acked, s.made, s.outcome))

    def store_faults(self, s: State) -> Iterator[Move[State]]:
        """A failover may lose the end, the last events, or all."""
        if s.link == "up":
            yield "FAULT the store is away", s._replace(link="away")
        if s.log is None:
            return
        link = "up" if s.link == "away" else s.link
        t = s._replace(link=link, end="", fenced=False, lapsed=True, recent=True, late=None, lost=True)
        if s.heir is not None:
            yield from self._heir_faults(s, t._replace(fenced=s.fenced))
        events = tuple(frame for frame in s.log if frame != ERROR_FRAME)
        if s.end:
            yield "FAULT failover, the end is lost", self._connected_anew(t._replace(log=events))
        for kept in range(len(events)):
            if s.heir is None or kept <= s.heir.base:
                yield f"FAULT failover, all after {kept} is lost", self._connected_anew(t._replace(log=events[:kept]))
        yield "FAULT the store comes back empty", self._connected_anew(t._replace(log=None))

    def _heir_faults(self, s: State, t: State) -> Iterator[Move[State]]:
        """A failover that does not lose the takeover with the events."""
        assert s.heir is not None
        log = s.log or ()
        for kept in range(s.heir.base, len(log)):
            yield (
                f"FAULT failover, all after {kept} is lost, and no takeover",
                self._connected_anew(t._replace(log=log[:kept])),
            )
