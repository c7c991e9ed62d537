"""The SSE codec: the WHATWG text's own examples, its line rules, and that no cut of the bytes changes anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.protocol.outcomes import Cause, StreamFailure
from relay.protocol.sse import MOST_LINES, Event, Parser, encode

BIG = 1 << 20


@dataclass
class Heard:
    """What came out of a parser: its events, and whether it refused to go on."""

    events: list[Event] = field(default_factory=list)
    failed: Cause | None = None
    last_event_id: bytes | None = None
    retry: int | None = None


def hear(chunks: Iterable[bytes], limit: int = BIG) -> Heard:
    """Feed the chunks and then nothing, as a body that ends does."""
    parser = Parser(limit)
    heard = Heard()
    try:
        for chunk in (*chunks, b""):
            for event in parser.feed(chunk):  # one by one: what came before a failure has been heard
                heard.events.append(event)
    except StreamFailure as failure:
        heard.failed = failure.cause
    heard.last_event_id = parser.last_event_id
    heard.retry = parser.retry
    return heard


def events_of(*chunks: bytes) -> list[Event]:
    heard = hear(chunks)
    assert heard.failed is None
    return heard.events


def bytewise(body: bytes) -> list[bytes]:
    return [body[i : i + 1] for i in range(len(body))]


def plain(*data: str) -> list[Event]:
    return [Event(b"", text.encode()) for text in data]


def controls(value: bytes) -> bool:
    return any(byte < 0x20 or byte == 0x7F for byte in value)


def by_the_standard(body: bytes) -> Heard:
    """The standard's algorithm, line by line on the whole body, with the parser's stated departures."""
    heard = Heard()
    body = body.removeprefix(b"\xef\xbb\xbf")
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    kind, data, error, block = b"", b"", b"", b""
    last_id, retry = heard.last_event_id, heard.retry
    for line in lines:
        if not line:
            if data.removesuffix(b"\n"):
                heard.events.append(Event(kind, data.removesuffix(b"\n")))
            elif not data and error:
                heard.events.append(Event(b"error", error))
            elif not data and block.lstrip()[:1] in (b"{", b"[", b"<"):
                heard.events.append(Event(kind, block.strip()))
            heard.last_event_id, heard.retry = last_id, retry
            kind, data, error, block = b"", b"", b"", b""
            continue
        block += line + b"\n"
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data += value + b"\n"
        elif name == b"event" and not controls(value):
            kind = value
        elif name == b"error":
            error = value
        elif name == b"id" and not controls(value):
            last_id = value
        elif name == b"retry" and value and all(c in b"0123456789" for c in value):
            retry = int(value)
    return heard


class TestTheStandardsExamples:
    def test_three_messages(self) -> None:
        body = (
            b"data: This is the first message.\n\n"
            b"data: This is the second message, it\ndata: has two lines.\n\n"
            b"data: This is the third message.\n\n"
        )
        assert events_of(body) == plain(
            "This is the first message.",
            "This is the second message, it\nhas two lines.",
            "This is the third message.",
        )

    def test_typed_events(self) -> None:
        body = b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n"
        assert events_of(body) == [Event(b"add", b"73857293"), Event(b"remove", b"2153"), Event(b"add", b"113411")]

    def test_a_quote_on_three_lines(self) -> None:
        assert events_of(b"data: YHOO\ndata: +2\ndata: 10\n\n") == plain("YHOO\n+2\n10")

    def test_four_blocks(self) -> None:
        parser = Parser(BIG)
        assert list(parser.feed(b": test stream\n\n")) == []
        assert list(parser.feed(b"data: first event\nid: 1\n\n")) == plain("first event")
        assert parser.last_event_id == b"1"
        assert list(parser.feed(b"data:second event\nid\n\n")) == plain("second event")
        assert parser.last_event_id == b""
        assert list(parser.feed(b"data:  third event\n\n")) == plain(" third event")

    def test_the_last_block_needs_its_blank_line(self) -> None:
        body = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"
        assert events_of(body) == plain("first event", "second event")

    def test_empty_data_is_dropped_and_a_lone_newline_is_not(self) -> None:
        # The standard fires an event with empty data for the first block: a departure that sse.py states.
        assert events_of(b"data\n\ndata\ndata\n\ndata:") == plain("\n")

    def test_the_space_after_the_colon_is_optional(self) -> None:
        assert events_of(b"data:test\n\ndata: test\n\n") == plain("test", "test")


class TestLines:
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    @pytest.mark.parametrize("cut", ["whole", "bytewise"])
    def test_each_line_end(self, end: bytes, cut: str) -> None:
        body = end.join([b"event: a", b"data: 1", b"data: 2", b"", b"data: 3", b"", b""])
        chunks = [body] if cut == "whole" else bytewise(body)
        assert events_of(*chunks) == [Event(b"a", b"1\n2"), Event(b"", b"3")]

    def test_line_ends_may_be_mixed(self) -> None:
        assert events_of(b"data: 1\r\ndata: 2\rdata: 3\n\r\ndata: 4\r\r\n") == plain("1\n2\n3", "4")

    def test_a_cr_at_a_chunks_end_and_its_lf_are_one_line_end(self) -> None:
        assert events_of(b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\n") == plain("1\n2")

    def test_a_cr_at_a_chunks_end_is_a_line_end_by_itself(self) -> None:
        parser = Parser(BIG)
        assert list(parser.feed(b"data: 1\r")) == []
        assert list(parser.feed(b"\r")) == plain("1")
        assert list(parser.feed(b"data: 2\r\r")) == plain("2")

    def test_an_event_does_not_wait_for_the_lf_of_its_last_crlf(self) -> None:
        parser = Parser(BIG)
        assert list(parser.feed(b"data: 1\r\n\r")) == plain("1")
        assert list(parser.feed(b"\n")) == []
        assert list(parser.feed(b"data: 2\r\n\r\n")) == plain("2")

    def test_an_empty_chunk_keeps_the_cr_in_mind(self) -> None:
        assert events_of(b"data: 1\r", b"", b"\n", b"", b"data: 2\r\n\r\n") == plain("1\n2")

    @pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
    def test_other_line_ends_of_unicode_are_data(self, character: str) -> None:
        text = f'{{"t":"a{character}b"}}'
        body = f"data: {text}\n\n".encode()
        assert events_of(body) == plain(text)
        assert events_of(*bytewise(body)) == plain(text)

    def test_blank_lines_between_events_are_nothing(self) -> None:
        assert events_of(b"\n\n\ndata: 1\n\n\n\n\ndata: 2\n\n\n") == plain("1", "2")
        assert events_of(*bytewise(b"\n\n\ndata: 1\n\n\n\n\ndata: 2\n\n\n")) == plain("1", "2")

    def test_fields_may_stand_in_any_order_and_unknown_ones_are_nothing(self) -> None:
        assert events_of(b"data: 1\nfoo: bar\nbaz\nevent: x\n\n") == [Event(b"x", b"1")]

    def test_field_names_are_exact(self) -> None:
        assert events_of(b"Data: 1\n data: 2\ndata : 3\ndataa: 4\n\n") == []

    def test_the_last_event_line_of_a_block_counts(self) -> None:
        assert events_of(b"event: a\nevent: b\ndata: 1\n\ndata: 2\n\n") == [Event(b"b", b"1"), Event(b"", b"2")]

    def test_a_type_without_data_is_no_event_and_does_not_last(self) -> None:
        assert events_of(b"event: a\n\ndata: 1\n\n") == plain("1")

    def test_colons_in_the_value_are_the_values(self) -> None:
        assert events_of(b"data: a: b:c\n\ndata::\n\n") == plain("a: b:c", ":")


class TestWhatIsNotForwarded:
    @pytest.mark.parametrize("alive", [b":\n\n", b": ping\n\n", b": a\n: b\n\n", b": hb\n", b"\n", b"data:\n\n"])
    def test_signs_of_life(self, alive: bytes) -> None:
        assert events_of(alive, b"data: 1\n\n", alive, alive, b"data: 2\n\n", alive) == plain("1", "2")

    def test_a_comment_inside_an_event(self) -> None:
        assert events_of(b"data: 1\n: data: no\ndata: 2\n\n") == plain("1\n2")

    def test_id_and_retry_are_kept_on_the_parser(self) -> None:
        heard = hear([b"id: up-7\nretry: 2500\ndata: 1\n\ndata: 2\n\n"])
        assert heard.events == plain("1", "2")
        assert (heard.last_event_id, heard.retry) == (b"up-7", 2500)

    def test_they_count_without_data_too(self) -> None:
        heard = hear([b"id: 1\n\nretry: 10\n\n"])
        assert (heard.events, heard.last_event_id, heard.retry) == ([], b"1", 10)

    @pytest.mark.parametrize("value", [b"", b"abc", b"1.5", b"-1", b"1 ", "٣".encode()])
    def test_a_retry_that_is_no_number_is_nothing(self, value: bytes) -> None:
        assert hear([b"retry: " + value + b"\ndata: 1\n\n"]).retry is None

    def test_an_id_with_a_nul_is_nothing(self) -> None:
        assert hear([b"id: 1\n\nid: a\0b\n\n"]).last_event_id == b"1"

    @pytest.mark.parametrize("byte", [0, 1, 8, 9, 0x0B, 0x1B, 0x1F, 0x7F])
    @pytest.mark.parametrize("where", [b"%b", b"a%bb", b"a%b", b" %b"])
    @pytest.mark.parametrize("after", [b"data: 1\n\n", b"data:1\n\n", b"data: 1\ndata: 2\n\n", b"x: 1\ndata: 1\n\n"])
    def test_a_type_with_a_control_character_is_nothing(self, byte: int, where: bytes, after: bytes) -> None:
        line = b"event: " + where % bytes([byte]) + b"\n"
        assert [event.type for event in events_of(line + after)] == [b""]
        assert [event.type for event in events_of(b"event: ping\n" + line + after)] == [b"ping"]
        assert [event.type for event in events_of(line + b"event: ping\n" + after)] == [b"ping"]

    def test_an_unfinished_event_is_discarded(self) -> None:
        parser = Parser(BIG)
        assert list(parser.feed(b"data: 1\n\ndata: 2\n")) == plain("1")
        assert parser.incomplete

    def test_after_a_whole_event_nothing_is_incomplete(self) -> None:
        parser = Parser(BIG)
        assert list(parser.feed(b"data: 1\n\n")) == plain("1")
        assert not parser.incomplete

    def test_a_body_of_no_bytes_is_not_incomplete(self) -> None:
        parser = Parser(BIG)
        assert list(parser.feed(b"")) == []
        assert not parser.incomplete


class TestByteOrderMark:
    BOM = b"\xef\xbb\xbf"

    def test_whole(self) -> None:
        assert events_of(self.BOM + b"data: 1\n\n") == plain("1")

    @pytest.mark.parametrize("cut", [1, 2, 3])
    def test_cut(self, cut: int) -> None:
        body = self.BOM + b"data: 1\n\n"
        assert events_of(body[:cut], body[cut:]) == plain("1")
        assert events_of(*bytewise(body[:cut]), b"", body[cut:]) == plain("1")

    def test_only_one_and_only_at_the_start(self) -> None:
        assert events_of(self.BOM * 2 + b"data: 1\n\ndata: 2\n\n") == plain("2")
        assert events_of(b"data: 0\n\n" + self.BOM + b"data: 1\n\ndata: 2\n\n") == plain("0", "2")

    def test_what_only_begins_like_one(self) -> None:
        assert events_of(b"\xef\xbb", b"x: y\ndata: 1\n\n") == plain("1")
        assert events_of(b"\xef", b"\xbb", b"\n\ndata: 1\n\n") == plain("1")


class TestUtf8:
    @pytest.mark.parametrize("text", ["é", "€", "😀", "a😀b", "\u202e"])
    def test_cut_anywhere(self, text: str) -> None:
        body = f"data: {text}\n\ndata: {text}\n\n".encode()
        for cut in range(len(body) + 1):
            assert events_of(body[:cut], body[cut:]) == plain(text, text)

    def test_bytes_that_are_no_utf8_go_through(self) -> None:
        assert events_of(b"data: \xff\xfe\x80\n\n") == [Event(b"", b"\xff\xfe\x80")]


PIECES = [
    *(bytes([c]) for c in b"\r\n: \0x9"),
    b"\r\n",
    b"\n\n",
    b"\r\r",
    b"data",
    b"data: ",
    b"data:",
    b"event: ",
    b"id: ",
    b"retry: ",
    b":\n\n",
    b"\xef\xbb\xbf",
    "€\u2028\x85".encode(),
    b"data: {}\n\n",
    b"event: e\r\ndata: 1\r\n\r\n",
]
bodies = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@st.composite
def cut_bodies(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    body = draw(bodies)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return body, [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


class TestAnyCut:
    @given(cut_bodies())
    @example((b"data: 1\r\n\r\n", bytewise(b"data: 1\r\n\r\n")))
    def test_gives_what_the_standard_says(self, cut: tuple[bytes, list[bytes]]) -> None:
        body, chunks = cut
        assert hear([body]) == hear(chunks) == hear(bytewise(body)) == by_the_standard(body)

    @given(st.lists(st.tuples(st.sampled_from([b"", b"error", b"response.created"]), st.text()), max_size=6))
    def test_what_is_encoded_is_parsed_again(self, sent: list[tuple[bytes, str]]) -> None:
        # CR cannot stand in what a parser gives; empty data is dropped.
        events = [Event(kind, text.replace("\r", "").encode(errors="surrogatepass")) for kind, text in sent]
        events = [event for event in events if event.data]
        body = b"".join(encode(event, b"st_x.%d" % n) for n, event in enumerate(events, 1))
        heard = hear([body])
        assert heard.events == events
        assert heard.last_event_id == (b"st_x.%d" % len(events) if events else None)
        assert hear(bytewise(body)).events == events


class TestEncode:
    def test_the_id_is_the_first_line(self) -> None:
        assert encode(Event(b"", b"{}"), b"st_a.1") == b"id: st_a.1\ndata: {}\n\n"
        assert encode(Event(b"error", b"{}"), b"st_a.2") == b"id: st_a.2\nevent: error\ndata: {}\n\n"

    def test_without_a_log_there_is_none(self) -> None:
        assert encode(Event(b"", b"[DONE]"), None) == b"data: [DONE]\n\n"
        assert encode(Event(b"ping", b"{}"), None) == b"event: ping\ndata: {}\n\n"

    def test_each_line_of_the_data_has_its_own(self) -> None:
        assert encode(Event(b"", b"a\n\nb\n"), b"i.1") == b"id: i.1\ndata: a\ndata: \ndata: b\ndata: \n\n"

    def test_data_goes_through_verbatim(self) -> None:
        data = '{"a": "\u2028\x85 \\ud800", "b":  1.0e5}'.encode()
        assert encode(Event(b"", data), b"i.1") == b"id: i.1\ndata: " + data + b"\n\n"


class TestTheBound:
    LIMIT = 64

    def test_an_event_below_it_passes_and_one_far_above_it_does_not(self) -> None:
        assert hear([b"data: " + b"x" * 20 + b"\n\n"], self.LIMIT).failed is None
        assert hear([b"data: " + b"x" * 200 + b"\n\n"], self.LIMIT).failed is Cause.EVENT_TOO_LARGE

    @pytest.mark.parametrize("prefix", [b"data: ", b"data:", b"event: e\ndata: "])
    def test_the_cut_of_the_bytes_does_not_decide(self, prefix: bytes) -> None:
        for size in range(self.LIMIT - 20, self.LIMIT + 8):
            body = prefix + b"x" * size + b"\n\n"
            whole = hear([body], self.LIMIT)
            assert hear(bytewise(body), self.LIMIT) == whole
            for cut in range(1, len(body)):
                assert hear([body[:cut], body[cut:]], self.LIMIT) == whole

    @pytest.mark.parametrize(
        "endless", [b": and so on", b"x", b"data: x", b"data: \n", b"data:\n", b"event: e", b"id: i\n"]
    )
    def test_what_never_ends_is_held_no_longer_than_that(self, endless: bytes) -> None:
        heard = hear([endless] * (10 * self.LIMIT), self.LIMIT)
        assert heard.failed is Cause.EVENT_TOO_LARGE
        assert not heard.events

    def test_many_lines_of_data_are_one_event(self) -> None:
        assert hear([b"data: x\n" * 100 + b"\n"], self.LIMIT).failed is Cause.EVENT_TOO_LARGE

    @pytest.mark.parametrize("line", [b"a\n", b":\n", b"data:\n", b"id:\n", b"retry:1\n"])
    def test_an_event_has_a_bounded_number_of_lines(self, line: bytes) -> None:
        """Each is gone through by itself: 4,000,000 held up the loop for half a second."""
        many = b"data: 1\n\ndata: x\n" + line * (MOST_LINES + 1) + b"\n"
        assert hear([many]) == Heard(plain("1"), Cause.EVENT_TOO_LARGE)
        few = b"data: x\n" + line * (MOST_LINES // 2) + b"\n"
        assert len(hear([few]).events) == 1

    def test_it_is_for_one_event_and_not_for_a_chunk(self) -> None:
        body = b"data: 12345\n\n" * 100
        assert hear([body], self.LIMIT).events == plain("12345") * 100
        assert hear(bytewise(body), self.LIMIT).events == plain("12345") * 100

    def test_comments_between_events_do_not_add_up(self) -> None:
        assert hear([b": keep-alive\n\n"] * 100 + [b"data: 1\n\n"], self.LIMIT).events == plain("1")

    @pytest.mark.parametrize("cut", ["whole", "bytewise"])
    def test_what_came_before_the_large_one_is_not_lost(self, cut: str) -> None:
        body = b"data: 1\n\ndata: 2\n\ndata: " + b"x" * 200 + b"\n\n"
        heard = hear([body] if cut == "whole" else bytewise(body), self.LIMIT)
        assert heard.failed is Cause.EVENT_TOO_LARGE
        assert heard.events == plain("1", "2")
