"""The half of the model that reads: the tail on B, the client's connections, and the table of resume outcomes."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explorer import Move
from tests.model.rules import Mutation
from tests.model.state import COMPLETED, ERROR_FRAME, FORCED, Client, Feed, Look, Page, Rules, State


class Reading(Rules):
    """Moves of B's tail, of a second reader there, and of the client."""

    # -- the tail on B ------------------------------------------------------------------------------------

    def tail(self, s: State) -> Iterator[Move[State]]:
        """It subscribes, then reads the log for the first time: all that comes after that is said. That first answer is
        on its way for a while; later ones are taken at once."""
        feed = s.feed
        if feed is None or not feed.live:
            if feed is not None and feed.dropped and s.at == "opening":
                answer, t = self._opened(s)
                yield f"the dropped tail is open{answer}", t
            return
        if feed.page is not None:
            t = s._replace(feed=self._taken(feed, feed.page))
            answer, t = self._opened(t) if t.at == "opening" else ("", t)
            yield f"B's tail takes the page{answer}", t
        elif not feed.opened:
            page = None if s.link == "away" else self._page(s, feed.top)
            if page is not None:
                early = self.broken(Mutation.LOOK_BEFORE_SUBSCRIPTION)
                yield "B's tail subscribes and reads", s._replace(feed=feed._replace(subscribed=not early, page=page))
            else:
                t = s._replace(other=False, feed=None)
                yield "B's tail cannot be opened: 503", self._disconnected(t) if s.at == "opening" else t
        elif s.link == "away":
            return
        elif feed.message == "sent":
            page = self._page(s, feed.top)
            message = "" if page is not None else "lost"
            feed = feed._replace(message=message)
            yield "B's tail reads", s._replace(feed=feed if page is None else self._taken(feed, page))
        elif not self.broken(Mutation.NO_PERIODIC_CHECK):
            if s.log is not None and (len(s.log) != feed.top or s.end):
                yield "B's tail checks", s._replace(feed=feed._replace(message="sent"))
            elif s.log is None and not s.recent:
                yield "B's tail checks: the stream is gone", s._replace(feed=feed._replace(closed=True))

    def _page(self, s: State, after: int) -> Page | None:
        """What a read of the log answers, None where it is too early to say."""
        if s.log is None:
            return None if s.recent else Page((), "", True)
        frames = s.log[after:]
        if frames or len(s.log) == after:
            return Page(frames, s.end, False)
        return Page((), "", bool(s.end) and not self.broken(Mutation.END_BELOW_FEED_IGNORED))

    @staticmethod
    def _taken(feed: Feed, page: Page) -> Feed:
        frames = feed.frames + page.frames
        return feed._replace(frames=frames, end=page.end, closed=page.gap, subscribed=True, opened=True, page=None)

    def _usable(self, feed: Feed | None, top: int) -> Feed:
        """The feed that a reader on B is given: the one that is there, unless it goes no further."""
        if feed is None or feed.dropped:
            return Feed(top)
        return feed if feed.live or self.broken(Mutation.OVER_FEED_SHARED) else Feed(top)

    def other_reader(self, s: State) -> Iterator[Move[State]]:
        """Another reader of the stream comes to B. It leaves when it likes, if ever."""
        if s.link == "away" or s.log is None or s.end or s.at not in ("cut", "looked", "opening", "B"):
            return
        if s.feed is None or s.feed.live:
            yield "another reader comes to B", s._replace(other=True, feed=self._usable(s.feed, len(s.log)))

    def other_leaves(self, s: State) -> Iterator[Move[State]]:
        if s.other:
            yield "the other reader leaves B", self._released(s._replace(other=False))

    def _released(self, s: State) -> State:
        """A reader has left B: with the last one the feed goes."""
        if s.feed is None or s.other or s.at == "B":
            return s
        if s.at == "opening":
            uncounted = self.broken(Mutation.ATTACHING_NOT_COUNTED)
            return s._replace(feed=s.feed._replace(dropped=True)) if uncounted else s
        return s._replace(feed=None)

    # -- what a connected client gets ---------------------------------------------------------------------

    def connected(self, s: State) -> Iterator[Move[State]]:
        if s.at == "A":
            if s.process == "running":
                yield from self._read_producer(s)
        elif s.at == "B":
            yield from self._read_tail(s)
        elif s.at == "log":
            yield from self._read_page(s)

    def _read_producer(self, s: State) -> Iterator[Move[State]]:
        if s.cursor < s.shown:
            with_id = s.cursor < s.acked or not self.broken(Mutation.AHEAD_WITHOUT_IDS)
            yield f"A's client gets {s.cursor + 1}", self._give(s, s.cursor + 1, s.cursor + 1, with_id)
        elif s.mode == "ended" or s.end_shown:
            yield "A's client is told the end", self._tell_end(s, s.outcome, s.made)
        elif s.mode == "fenced":
            if self.broken(Mutation.FENCED_LOOKS_COMPLETE):
                yield "A's client is told the end", self._tell_end(s, COMPLETED, s.made)
            elif not self.broken(Mutation.FENCED_FEED_OPEN):
                yield "A's feed is closed: its reader takes the rest from the log", s._replace(at="log")

    def _read_tail(self, s: State) -> Iterator[Move[State]]:
        feed = s.feed
        assert feed is not None
        if s.cursor < feed.base:
            yield from self._read_page(s)
        elif s.cursor < feed.top:
            frame = feed.frames[s.cursor - feed.base]
            yield f"B's client gets {frame}", self._give(s, frame, s.cursor + 1)
        elif feed.end == FORCED and s.cursor == feed.top and s.link == "away":
            yield "B cannot spell the end without the last event: cut", self._cut(s)
        elif feed.end and s.cursor == feed.top:
            yield "B's client is told the end", self._left(self._tell_end(s, feed.end, feed.top))
        elif feed.end:
            yield "B's feed has ended before the reader's position: cut", self._cut(s)
        elif feed.closed:
            yield "B's feed is closed: its reader takes the rest from the log", self._left(s._replace(at="log"))

    def _read_page(self, s: State) -> Iterator[Move[State]]:
        """A page of the log goes out whole; a connection may break inside it."""
        page = s.begun or (None if s.link == "away" else self._page(s, s.cursor))
        s = s._replace(begun=None)
        if page is None or not (page.frames or page.end):
            yield "nothing can be read after the reader's position: cut", self._cut(s)
            return
        t = s
        for frame in page.frames[:-1]:
            t = self._give(t, frame, t.cursor + 1)
            if s.faults:
                yield (
                    f"the client gets {frame}, then its connection breaks",
                    self._disconnected(t._replace(faults=s.faults - 1)),
                )
        if page.frames:
            t = self._give(t, page.frames[-1], t.cursor + 1)
        if page.end == FORCED and s.link == "away":
            yield f"the client gets {page.frames} from the log, and its end cannot be spelled: cut", self._cut(t)
        elif page.end:
            yield (
                f"the client gets {page.frames} from the log, and the end",
                self._left(self._tell_end(t, page.end, t.cursor)),
            )
        else:
            yield f"the client gets {page.frames} from the log", t

    def _give(self, s: State, frame: int, number: int, with_id: bool = True) -> State:
        if s.wrong:
            return s
        s = s._replace(cursor=number, last=number if with_id else s.last)
        if frame == ERROR_FRAME:
            return s
        if frame <= s.seen:
            return s._replace(wrong=f"DUPLICATE: event {frame} again")
        if frame != s.seen + 1:
            return s._replace(wrong=f"HOLE: event {frame} after {s.seen}")
        return s._replace(seen=frame)

    def _tell_end(self, s: State, end: str, number: int) -> State:
        """The end of a stream of so many events. Where the relay tells it, it has an id."""
        if s.wrong:
            return s
        if end == COMPLETED:
            return self._complete(s, "end" if self.client is Client.EVENT_SOURCE else "done")
        if end == FORCED and self.terminal and s.seen == self.events:
            return s._replace(wrong="FALSE END: an error after the whole answer")
        if not self.broken(Mutation.END_TAKES_NUMBER):
            s = s._replace(last=number, last_end=True)
        return s._replace(at="error" if self.client is Client.EVENT_SOURCE else "done")

    def _complete(self, s: State, at: str) -> State:
        """The client takes what it has for the whole."""
        if s.seen < self.events or (s.outcome != COMPLETED and s.heir is None):
            return s._replace(wrong="TRUNCATION: looks like success")
        return s._replace(at=at)

    # -- connections end ----------------------------------------------------------------------------------

    def _left(self, s: State) -> State:
        """The client's place on B is given back where it is no longer there."""
        return s if s.at == "B" or s.wrong else self._released(s)

    def _cut(self, s: State) -> State:
        """The relay has nothing more for a reader, and does not know why."""
        if self.broken(Mutation.CUT_LOOKS_CLEAN):
            return self._left(self._tell_end(s, COMPLETED, s.cursor))
        return self._disconnected(s)

    def _disconnected(self, s: State) -> State:
        """The connection ends without an end."""
        if s.wrong:
            return s
        leaving = s.at == "B" or (s.at == "opening" and not self.broken(Mutation.PLACE_NOT_GIVEN_BACK))
        s = s._replace(at="done" if self.client is Client.SDK else "cut", look=None, begun=None)
        return self._released(s) if leaving else s

    def _refused(self, s: State) -> State:
        """404 or 410: final."""
        if not (s.lost and (s.excused or s.mode == "ended")):
            return s._replace(wrong="FALSE ERROR: the producer lives, or the store has lost nothing")
        return self._left(s._replace(at="done", look=None))

    def connection_faults(self, s: State) -> Iterator[Move[State]]:
        if s.feed is not None and s.feed.opened and s.feed.message == "sent":
            yield "FAULT the message to B is lost", s._replace(feed=s.feed._replace(message="lost"))
        if s.at in ("A", "B", "log", "looked", "opening"):
            yield "FAULT the client's connection breaks", self._disconnected(s)

    # -- the client comes back ----------------------------------------------------------------------------

    def at_producer(self, s: State) -> Iterator[Move[State]]:
        """Chance may always lead it to another replica: that it meets A is not fair."""
        if s.at not in ("cut", "error", "end") or s.process != "running" or s.mode not in ("writing", "ahead"):
            return
        if s.last_end and not self.broken(Mutation.END_ID_IS_EVENT_ID):
            yield "resume at the end on A: 204", s._replace(at="done")
        elif s.end_shown and s.outcome == COMPLETED and s.last == s.made:
            yield f"resume at {s.last} on A: 204", self._complete(s, "done")
        elif s.last <= s.made:
            yield f"resume at {s.last} on A", s._replace(at="A", cursor=s.last, last_end=False)

    def elsewhere(self, s: State) -> Iterator[Move[State]]:
        """B looks, decides by what the look says, and where the stream lives enters its tail and waits until that is
        open."""
        if s.at in ("cut", "error", "end") and s.link != "away":
            yield f"resume at {s.last}{'e' if s.last_end else ''}: B looks", s._replace(at="looked", look=self._look(s))
        elif s.at == "looked":
            assert s.look is not None
            if not s.look.lapsed:
                yield self._decided(s, s.look)
            elif s.link == "away":
                yield "B: 503, the store cannot be reached", self._disconnected(s)
            else:
                yield self._decided(s, self._look(s))
        elif s.at == "opening":
            assert s.feed is not None
            if s.feed.opened:
                answer, t = self._first_page(s)
                yield f"B reads the first page{answer}", t

    @staticmethod
    def _look(s: State) -> Look:
        return Look(-1 if s.log is None else len(s.log), s.end, s.recent, s.lapsed and s.log is not None)

    def _decided(self, s: State, look: Look) -> Move[State]:
        """The table of resume outcomes, as far as the look goes."""
        n = s.last
        s = s._replace(look=None)
        if look.top < 0:
            if (look.recent or s.recent) and not self.broken(Mutation.UNKNOWN_AT_ONCE):
                return "B: 503, the store has just come back", self._disconnected(s)
            return "B: 404", self._refused(s)
        if s.last_end and not self.broken(Mutation.END_ID_IS_EVENT_ID):
            return "B: 204", s._replace(at="done")
        s = s._replace(last_end=False, cursor=n)
        if not look.end:
            if n == look.top and self.broken(Mutation.LIVE_TOP_IS_COMPLETE):
                return "B: 204", self._complete(s, "done")
            feed = self._usable(s.feed, look.top)
            t = s._replace(at="opening", look=look, feed=feed, other=s.other and feed == s.feed)
            answer, t = self._opened(t) if feed.opened else ("", t)
            return f"B: the stream lives, its tail has one more reader{answer}", t
        if n > look.top:
            if self.broken(Mutation.BEYOND_END_IS_COMPLETE):
                return "B: 204", self._complete(s, "done")
            return "B: 410, beyond the end", self._refused(s)
        if n == look.top and (look.end == COMPLETED or self.broken(Mutation.TOLD_END_IS_COMPLETE)):
            return "B: 204", self._complete(s, "done")
        if n == look.top and self.broken(Mutation.END_TAKES_NUMBER):
            return "B: 410, an end's number", self._refused(s)
        answer, t = self._first_page(s)
        return f"B: the stream has ended{answer}", t

    def _opened(self, s: State) -> Move[State]:
        """B's tail is open: is the position one that it can go on from?"""
        feed, look, n = s.feed, s.look, s.last
        assert feed is not None
        assert look is not None
        if n < feed.base:  # a first page is read
            return ("", s) if s.link != "away" else (": 503, the store cannot tell", self._disconnected(s))
        if n > max(feed.top, look.top):
            if self.broken(Mutation.AHEAD_IS_GONE):
                return ": 410", self._refused(s)
            if self.broken(Mutation.AHEAD_IS_TOP):
                n = feed.top
            elif feed.live:
                return ": 503, the producer is ahead of its log", self._disconnected(s)
            else:
                return ": 410, beyond the end", self._refused(s)
        return f": attaches the reader after {n}", s._replace(at="B", cursor=n, look=None)

    def _first_page(self, s: State) -> Move[State]:
        """What is read before anything is answered: what is answered where there is nothing."""
        page = None if s.link == "away" else self._page(s, s.last)
        if page is None:
            return ": 503, the store cannot tell", self._disconnected(s)
        if page.frames or page.end:
            at = "B" if s.at == "opening" else "log"
            return f": attaches the reader after {s.last}", s._replace(at=at, look=None, begun=page)
        if page.gap or self.broken(Mutation.EMPTY_PAGE_IS_GONE):
            return ": 410, nothing follows", self._refused(s)
        return ": 503, the log has lost what follows", self._disconnected(s)
