"""The claims of Idempotency-Keys as a model: one key, requests with it on two replicas, one store.

A claim is in the store from before the POST to the end of the generation. Whoever finds another's claim joins its
stream, is told to come back (409), or takes the key, where the generation is over or was never to be. Each request that
claims does so for a stream of its own, numbered 1, 2, …

A state is wrong where two upstream calls may run for one key, where a key names a generation that runs no more and
nobody can take it, and where a request joins a stream that its producer does not write. Two processes cannot be told
from dead ones and are left out: one that is paused when the store has lost its connections (or what it held), and one
that is cut off from the store, but not from its upstream, for longer than a lease.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from tests.model.explorer import Move


class ClaimMutation(Enum):
    """A rule of the claims, broken. The value says what is done instead."""

    CLAIM_AFTER_POST = "the POST does not wait for the claim"
    UNMADE_IS_OVER = "a claim whose stream is not made yet is taken away"
    LEASE_IS_PROOF = "a replica that has given no sign of life for a lease counts as dead"
    FORCED_END_IS_OVER = "a stream that was ended by force counts as over"
    RETURN_NOT_AWAITED = "a key that nobody has, in a store that has just come back, is a free key"
    SETTLES_TOO_SOON = "a store that has come back counts as settled before every replica has renewed"
    START_IS_NO_RETURN = "a replica that has just started takes the store for settled"
    NOT_ASSERTED = "a renewal does not assert the claims again"
    UNLOGGED_GIVES_BACK = "a generation that goes on without a log gives its key back"
    UNLOGGED_IS_JOINABLE = "a generation that goes on without a log does not say so in its claim"
    FAILED_KEEPS_KEY = "a generation that came to nothing keeps its key"
    LOST_REPLY_KEEPS_KEY = "a request whose claim was not answered does not give it back"
    RELEASE_UNCONDITIONAL = "a key is given back whoever has it"
    GIVEN_BACK_ONCE = "a store that may have lost it is not told again that a key was given back"
    EARLIER_CLAIM_HOLDS = "a claim that had been given back, and is there again, holds against a later one"


class Claim(NamedTuple):
    """The stream that has the key, the replica that generates it, whether others may join it, and the number of this
    claim of the key."""

    stream: int
    replica: int
    joinable: bool = True
    at: int = 0


class Replica(NamedTuple):
    """`phase`: idle, claiming, judging or releasing (another's claim, of stream `found`), posting, calling (its request
    is with the upstream), made (its stream is in the log), unlogged. `owed`: a stream whose claim is to be given back.
    `heard` and `subscribed` are what the store knows of it; `recent`: it reached the store again less than a lease
    ago."""

    process: str = "running"  # absent, paused, dead
    phase: str = "idle"
    stream: int = 0
    found: int = 0
    owed: int = 0
    given_back: int = 0  # the last one, which a store that has lost that is told again
    at: int = 0  # which claim of the key its own was
    heard: bool = True
    subscribed: bool = True
    recent: bool = False

    @property
    def calls(self) -> bool:
        """May its upstream call run?"""
        return self.process in ("running", "paused") and self.phase in ("calling", "made", "unlogged")

    @property
    def generates(self) -> bool:
        return self.phase in ("posting", "calling", "made", "unlogged")


class ClaimState(NamedTuple):
    """`logs[i]` is what the log says of stream i + 1: nothing, live, completed, failed, forced. `late`: a claim or a
    create that a frozen store executes later."""

    replicas: tuple[Replica, ...] = (Replica(), Replica())
    claim: Claim | None = None
    former: Claim | None = None  # as a replica of the store that lags still has it
    claimed: int = 0  # how many claims there were
    logs: tuple[str, ...] = ()
    away: bool = False
    late: tuple[str, int, int] | None = None  # what, stream, replica
    stale: bool = False  # a late claim was executed that nobody may give back
    requests: int = 3
    unproven: bool = False  # a process that was paused has lost its connection to the store
    wrong: str = ""
    faults: int = 0


class ClaimModel:
    """All moves of the replicas, the store and the upstream."""

    def __init__(
        self, *, faults: int = 2, requests: int = 3, late_start: bool = False, mutation: ClaimMutation | None = None
    ) -> None:
        """`late_start`: the second replica starts at some later time."""
        self.faults = faults
        self.requests = requests
        self.late_start = late_start
        self.mutation = mutation

    def _broken(self, mutation: ClaimMutation) -> bool:
        return self.mutation is mutation

    # -- what the search asks -----------------------------------------------------------------------------

    def initial(self) -> Iterator[Move[ClaimState]]:
        second = Replica("absent", heard=False, subscribed=False) if self.late_start else Replica()
        yield "two replicas", ClaimState((Replica(), second), requests=self.requests, faults=self.faults)

    def fair(self, state: ClaimState) -> Iterator[Move[ClaimState]]:
        for r, replica in enumerate(state.replicas):
            if replica.process == "paused":
                yield f"{'AB'[r]} wakes", self._with(state, r, process="running")
            elif replica.process == "running":
                yield from self._request(state, r, replica)
                if not state.away:
                    yield from self._renewal(state, r, replica)
        yield from self._store(state)

    def unfair(self, state: ClaimState) -> Iterator[Move[ClaimState]]:
        for r, replica in enumerate(state.replicas):
            if replica.process == "absent":
                recent = not self._broken(ClaimMutation.START_IS_NO_RETURN)
                yield f"{'AB'[r]} starts", self._with(state, r, process="running", recent=recent)
            elif replica.process == "running":
                yield from self._upstream(state, r, replica)
                if replica.phase == "idle" and not replica.owed and state.requests:
                    yield f"a request comes to {'AB'[r]}", self._arrives(state, r)
        if state.late is not None and not state.away:
            yield "the late command is executed", self._executed_late(state)
        if state.faults:
            for name, successor in self._faults(state):
                yield f"FAULT {name}", successor._replace(faults=state.faults - 1)

    def settled(self, state: ClaimState) -> bool:
        """Nobody waits for the key, or it names a generation that runs."""
        waiting = any(
            r.process == "running" and r.phase in ("claiming", "judging", "releasing") for r in state.replicas
        )
        return not waiting or any(replica.calls for replica in state.replicas)

    def wrong(self, state: ClaimState) -> str:
        if state.wrong:
            return state.wrong
        if sum(replica.calls for replica in state.replicas) > 1 and not state.unproven:
            return "PAID TWICE: two upstream calls may run"
        return ""

    @staticmethod
    def _with(state: ClaimState, r: int, **changes: object) -> ClaimState:
        changed = state.replicas[r]._replace(**changes)  # type: ignore[arg-type]
        return state._replace(replicas=(*state.replicas[:r], changed, *state.replicas[r + 1 :]))

    # -- a request with the key ---------------------------------------------------------------------------

    def _arrives(self, state: ClaimState, r: int) -> ClaimState:
        stream = len(state.logs) + 1
        state = state._replace(logs=(*state.logs, ""), requests=state.requests - 1)
        return self._with(state, r, phase="claiming", stream=stream)

    def _request(self, state: ClaimState, r: int, replica: Replica) -> Iterator[Move[ClaimState]]:
        at = "AB"[r]
        if replica.phase == "posting":
            yield f"{at} sends the request upstream", self._with(state, r, phase="calling")
        elif replica.phase == "claiming":
            if state.away:
                if self._broken(ClaimMutation.CLAIM_AFTER_POST):
                    yield f"{at} goes on without an answer", self._with(state, r, phase="posting")
                else:
                    yield f"{at}: 503", self._given_up(state, r)
            else:
                yield from self._claim(state, r, replica)
        elif replica.phase == "judging" and not state.away:
            yield from self._judge(state, r, replica)
        elif replica.phase == "releasing" and not state.away:
            yield (
                f"{at} takes the key from stream {replica.found}",
                self._with(self._release(state, replica.found), r, phase="claiming", found=0),
            )
        elif replica.phase in ("judging", "releasing"):
            yield f"{at}: 503", self._with(state, r, phase="idle", stream=0, found=0)

    def _claim(self, state: ClaimState, r: int, replica: Replica) -> Iterator[Move[ClaimState]]:
        claim, at = state.claim, "AB"[r]
        if claim is not None:
            yield (
                f"{at} finds the claim of stream {claim.stream}",
                self._with(state, r, phase="judging", found=claim.stream),
            )
        elif not replica.recent or self._broken(ClaimMutation.RETURN_NOT_AWAITED):
            taken = self._taken(state, r)
            yield (
                f"{at} claims the key for stream {replica.stream}",
                self._with(taken, r, phase="posting", at=taken.claimed),
            )

    def _given_up(self, state: ClaimState, r: int) -> ClaimState:
        """Its claim may have been executed."""
        replica = state.replicas[r]
        owed = 0 if self._broken(ClaimMutation.LOST_REPLY_KEEPS_KEY) else replica.stream
        return self._with(state, r, phase="idle", stream=0, owed=owed)

    def _release(self, state: ClaimState, stream: int) -> ClaimState:
        claim = state.claim
        if claim is None or (claim.stream != stream and not self._broken(ClaimMutation.RELEASE_UNCONDITIONAL)):
            return state
        return state._replace(claim=None, former=claim)

    @staticmethod
    def _taken(state: ClaimState, r: int) -> ClaimState:
        n = state.claimed + 1
        return state._replace(claim=Claim(state.replicas[r].stream, r, at=n), claimed=n)

    def _judge(self, state: ClaimState, r: int, replica: Replica) -> Iterator[Move[ClaimState]]:
        """Whether the stream that has the key can be joined, and whether its generation may still run."""
        at, claim = "AB"[r], state.claim
        if claim is None or claim.stream != replica.found:
            yield f"{at} asks again", self._with(state, r, phase="claiming", found=0)
            return
        log, maker = state.logs[claim.stream - 1], state.replicas[claim.replica]
        if log == "completed" or (log == "live" and maker.heard and claim.joinable):
            yield f"{at} joins stream {claim.stream}", self._joined(state, r, claim)
        elif log == "failed" or self._over(state, r, claim):
            yield f"{at} finds stream {claim.stream} over", self._with(state, r, phase="releasing")
        else:
            yield f"{at}: 409", self._with(state, r, phase="claiming", found=0)

    def _joined(self, state: ClaimState, r: int, claim: Claim) -> ClaimState:
        maker = state.replicas[claim.replica]
        written = maker.phase == "made" and maker.stream == claim.stream
        live = state.logs[claim.stream - 1] == "live"
        told = self._renewed(state, claim.replica, maker) == state  # until then nobody can know
        if live and maker.process == "running" and not written and told:
            return state._replace(wrong="EMPTY: joins a stream that its producer does not write")
        return self._with(state, r, phase="idle", stream=0, found=0)

    def _over(self, state: ClaimState, r: int, claim: Claim) -> bool:
        """Can nothing of it run any more? The log does not say so of a stream that was ended by force."""
        log, maker = state.logs[claim.stream - 1], state.replicas[claim.replica]
        if log == "forced" and self._broken(ClaimMutation.FORCED_END_IS_OVER):
            return True
        if log == "" and self._broken(ClaimMutation.UNMADE_IS_OVER):
            return True
        if claim.replica == r:
            return not (maker.generates and maker.stream == claim.stream)
        silent = not maker.heard and (not maker.subscribed or self._broken(ClaimMutation.LEASE_IS_PROOF))
        return silent and not state.replicas[r].recent

    # -- the generation -----------------------------------------------------------------------------------

    def _upstream(self, state: ClaimState, r: int, replica: Replica) -> Iterator[Move[ClaimState]]:
        at, stream = "AB"[r], replica.stream
        if replica.phase == "calling":
            yield f"the upstream refuses {at}'s request", self._ended(state, r)
            if state.away:
                yield f"{at} goes on without a log", self._unlogged(state, r)
            else:
                yield f"{at} makes stream {stream}", self._logged(self._with(state, r, phase="made"), stream, "live")
        elif replica.phase == "unlogged":
            yield f"{at}'s generation ends", self._ended(state, r)
        elif replica.phase == "made" and not state.away and state.logs[stream - 1] == "live":
            done = self._logged(state, stream, "completed")
            yield f"{at}'s generation is complete", self._with(done, r, phase="idle", stream=0)
            yield f"{at}'s generation fails", self._ended(self._logged(state, stream, "failed"), r)

    def _unlogged(self, state: ClaimState, r: int) -> ClaimState:
        back = self._broken(ClaimMutation.UNLOGGED_GIVES_BACK)
        return self._with(state, r, phase="unlogged", owed=state.replicas[r].stream if back else 0)

    def _ended(self, state: ClaimState, r: int) -> ClaimState:
        """Its call is over, and it came to nothing that others could read."""
        owed = 0 if self._broken(ClaimMutation.FAILED_KEEPS_KEY) else state.replicas[r].stream
        return self._with(state, r, phase="idle", stream=0, owed=owed)

    @staticmethod
    def _logged(state: ClaimState, stream: int, what: str) -> ClaimState:
        return state._replace(logs=(*state.logs[: stream - 1], what, *state.logs[stream:]))

    def _renewal(self, state: ClaimState, r: int, replica: Replica) -> Iterator[Move[ClaimState]]:
        """A sign of life, the subscription, the claim, what is owed, and the log's answer."""
        renewed = self._renewed(state, r, replica)
        if renewed != state:
            yield f"{'AB'[r]} renews", renewed

    def _renewed(self, state: ClaimState, r: int, replica: Replica) -> ClaimState:
        state = self._with(state, r, heard=True, subscribed=True)
        if replica.recent and replica.given_back and not self._broken(ClaimMutation.GIVEN_BACK_ONCE):
            state = self._release(state, replica.given_back)
        if replica.owed:
            state = self._with(self._release(state, replica.owed), r, owed=0, given_back=replica.owed)
        if replica.phase == "made":
            log = state.logs[replica.stream - 1]
            if log == "":
                state = self._logged(state, replica.stream, "live")
            elif log == "forced":
                return self._ended(state, r)
        asserts = replica.generates and replica.owed != replica.stream and not self._broken(ClaimMutation.NOT_ASSERTED)
        later = state.claim is not None and state.claim.at < replica.at
        holds = state.claim is None or state.claim.stream == replica.stream
        if asserts and (holds or (later and not self._broken(ClaimMutation.EARLIER_CLAIM_HOLDS))):
            logged = replica.phase != "unlogged" or self._broken(ClaimMutation.UNLOGGED_IS_JOINABLE)
            state = state._replace(claim=Claim(replica.stream, r, logged, replica.at))
        return state

    # -- the store ----------------------------------------------------------------------------------------

    def _store(self, state: ClaimState) -> Iterator[Move[ClaimState]]:
        if state.away:
            yield "the store is back", self._returned(state._replace(away=False))
        if state.late is not None:
            yield "the late command is dropped", state._replace(late=None)
        if state.stale and state.claim is not None and not any(r.generates for r in state.replicas):
            yield "the claim's time to live is over", state._replace(claim=None, stale=False)
        for r, replica in enumerate(state.replicas):
            if replica.heard and (replica.process != "running" or state.away):
                yield f"{'AB'[r]} has given no sign of life for a lease", self._with(state, r, heard=False)
        if state.away:
            return
        if any(replica.recent and replica.process == "running" for replica in state.replicas):
            renewed = all(
                replica.process != "running" or self._renewed(state, r, replica) == state
                for r, replica in enumerate(state.replicas)
            )
            if renewed or self._broken(ClaimMutation.SETTLES_TOO_SOON):
                settled = tuple(
                    replica._replace(recent=False) if replica.process == "running" else replica
                    for replica in state.replicas
                )
                yield "the store has been back for a lease", state._replace(replicas=settled)
        elif state.claim is not None and state.logs[state.claim.stream - 1] == "live":
            maker = state.replicas[state.claim.replica]
            unwritten = maker.process == "running" and maker.phase != "made"
            if not maker.heard or unwritten:
                yield "the stream is ended by force", self._logged(state, state.claim.stream, "forced")

    @staticmethod
    def _returned(state: ClaimState) -> ClaimState:
        replicas = tuple(r._replace(recent=r.process != "absent") for r in state.replicas)
        return state._replace(replicas=replicas)

    def _executed_late(self, state: ClaimState) -> ClaimState:
        assert state.late is not None
        what, stream, r = state.late
        state = state._replace(late=None)
        if what == "create":
            return state if state.logs[stream - 1] else self._logged(state, stream, "live")
        return state if state.claim is not None else state._replace(claim=Claim(stream, r), stale=True)

    # -- faults -------------------------------------------------------------------------------------------

    def _faults(self, state: ClaimState) -> Iterator[Move[ClaimState]]:
        for r, replica in enumerate(state.replicas):
            at = "AB"[r]
            if replica.process not in ("running", "paused"):
                continue
            yield (
                f"{at} is killed",
                self._with(
                    state,
                    r,
                    process="dead",
                    phase="idle",
                    stream=0,
                    found=0,
                    owed=0,
                    given_back=0,
                    subscribed=False,
                    recent=False,
                ),
            )
            if replica.process == "running":
                unproven = state.unproven or not replica.subscribed
                yield f"{at} is paused", self._with(state._replace(unproven=unproven), r, process="paused")
                yield from self._lost_replies(state, r, replica)
        if not state.away:
            yield "the store is away", state._replace(away=True)
        yield "the store restarts", self._reconnected(state)
        if state.claim is not None:
            yield "failover, the claim is lost", self._reconnected(state._replace(claim=None))
            empty = state._replace(claim=None, logs=tuple("" for _ in state.logs))
            yield "the store comes back empty", self._reconnected(empty, heard=False)
        if state.former is not None:
            yield "failover, the former claim is there again", self._reconnected(state._replace(claim=state.former))

    def _lost_replies(self, state: ClaimState, r: int, replica: Replica) -> Iterator[Move[ClaimState]]:
        at = "AB"[r]
        if state.away:
            return
        if replica.phase == "claiming" and not replica.recent:
            if state.claim is None:
                yield f"{at} claims the key, and the reply is lost", self._given_up(self._taken(state, r), r)
            if state.late is None:
                late = state._replace(late=("claim", replica.stream, r))
                yield f"{at}'s claim waits in a frozen store's socket", self._given_up(late, r)
        elif replica.phase == "calling" and state.late is None:
            late = state._replace(late=("create", replica.stream, r))
            yield f"{at}'s create waits in a frozen store's socket", self._unlogged(late, r)

    @staticmethod
    def _reconnected(state: ClaimState, heard: bool | None = None) -> ClaimState:
        """Every connection to the store is a new one, which only a running process notices."""
        replicas = tuple(
            r._replace(
                subscribed=False,
                recent=r.process != "absent",
                heard=r.heard if heard is None else heard,
            )
            for r in state.replicas
        )
        unproven = state.unproven or any(r.process == "paused" for r in state.replicas)
        return state._replace(replicas=replicas, away=False, late=None, unproven=unproven)
