"""What can be said wrongly in the protocol of the log: one mutation for each rule that the promise stands on."""

from __future__ import annotations

from enum import Enum


class Mutation(Enum):
    """A rule of the protocol, broken. The value says what is done instead."""

    # The producer and the store.
    END_TAKES_NUMBER = "a forced end writes its error as a numbered event"
    FENCE_NOT_RAISED = "a forced end leaves the fence as it is"
    WHOLE_IS_LOST = "a forced end tells an error though the log has the upstream's last event"
    TOP_NOT_CHECKED = "an append does not compare the log's top with the expected one"
    LEASE_NOT_CHECKED = "a forced end is written though the lease runs again"
    RETURN_NOT_AWAITED = "a forced end is written within a lease of the store's own return"
    TOP_NOT_REPORTED = "a renewal does not say how far the log reaches"
    REWIND_IGNORED = "a producer does not write again what the store has lost"
    LOST_REPLY_IGNORED = "a producer does not go on from a log that is further than it knew"
    NOT_MADE_AGAIN = "a producer whose stream the store has lost does not make it again"
    SHOWN_BEFORE_APPEND = "events are shown before the log has taken them, though the store answers"
    NEVER_AHEAD = "a producer shows nothing while the store is away, however long"
    REMAKING_NEVER_AHEAD = "a producer that makes its stream again shows nothing until it has"
    END_NOT_SHOWN_AHEAD = "a producer that shows ahead of its log does not show its end"
    AHEAD_WITHOUT_IDS = "events shown ahead of the log have no ids"
    FENCED_FEED_OPEN = "the feed of a producer that was fenced off stays open"
    FENCED_LOOKS_COMPLETE = "the feed of a producer that was fenced off ends as if complete"

    # Who takes a lost producer's stream over.
    TAKEN_FROM_THE_LIVING = "a stream is taken over though its lease runs again"
    TAKEOVER_LEAVES_FENCE = "a takeover leaves the fence as it is"
    LOST_TAKEOVER_IS_FENCED_OFF = "an heir whose takeover the store has lost is fenced off"
    POSITION_NOT_KEPT = "an heir asks its upstream for the answer from its start"
    FENCED_STOPS = "a producer that is fenced off has its upstream stop"
    STOPPED_BEFORE_ITS_END = "a producer has its upstream stop before the log has its end"

    # The table of resume outcomes.
    AHEAD_IS_GONE = "a position ahead of a live stream's log is answered 410"
    AHEAD_IS_TOP = "a position ahead of a live stream's log is taken for the log's end"
    BEYOND_END_IS_COMPLETE = "a position beyond an ended log is answered 204"
    TOLD_END_IS_COMPLETE = "the last position of a stream whose end the relay told is answered 204"
    LIVE_TOP_IS_COMPLETE = "the last position of a live stream is answered 204"
    END_ID_IS_EVENT_ID = "the id of an end is taken for that of the event before it"
    UNKNOWN_AT_ONCE = "a stream that a store has just come back without is answered 404"
    EMPTY_PAGE_IS_GONE = "a page without events is answered 410, also where the stream lives"
    CUT_LOOKS_CLEAN = "a connection that must be cut is ended in order"

    # The tail and its readers.
    OVER_FEED_SHARED = "a reader that attaches to a live stream is given a feed that is over"
    END_BELOW_FEED_IGNORED = "a tail does not notice a log that has ended before what it has read"
    ATTACHING_NOT_COUNTED = "a reader that attaches does not count as one of the feed's"
    PLACE_NOT_GIVEN_BACK = "an attachment that fails leaves its feed behind"
    MESSAGE_WHILE_READING_DROPPED = "a message that comes while a page is read is dropped"
    LOOK_BEFORE_SUBSCRIPTION = "a tail reads the log first and subscribes then"
    NO_PERIODIC_CHECK = "a tail relies on messages alone"
