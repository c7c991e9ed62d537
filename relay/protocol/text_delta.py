"""Recognises events that differ from an earlier one only in their text, without parsing their JSON.

Most events of a stream are such, and parsing them was a fifth of what an event cost. Nothing is assumed of an
upstream: the first event of its kind is parsed, and a later one must have the same bytes except for a piece of text
that cannot end its JSON string. Then it has the meaning that the `Watch` found in the first. Formats in whose events
more than the text counts (`Watch.stateless_deltas`) are always parsed.
"""

from __future__ import annotations

import re

from relay.protocol.sse import Event, encode

# The inside of a JSON string (RFC 8259, section 7) in UTF-8 (RFC 3629, section 4), without \\u escapes: half of a pair
# of them is for the parser to judge.
_INSIDE = (
    rb"(?:[ !#-\[\]-~]++|\\[\"\\/bfnrt]|[\xc2-\xdf][\x80-\xbf]"
    rb"|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})"
)
_TEXT = re.compile(_INSIDE + b"++")
_PADDING = re.compile(_INSIDE + b"*+")
_KEY = re.compile(rb'"(?:content|text|delta|reasoning_content|reasoning|thinking|partial_json|arguments)": ?"')
# Random text that OpenAI adds, so that the length of an event does not tell that of its text.
_PADDED = re.compile(rb'"obfuscation": ?"')
# An upstream whose events never are alike is not asked again after so many.
_TRIES = 32


class TextDeltaTemplate:
    """What the text deltas of one stream have in common; a block of more than `longest` bytes never matches."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._head = b""  # before the text
        self._between = b""  # the text and its padding
        self._tail = b""
        self._tries = _TRIES

    def forget(self) -> None:
        """The stream has come to a state in which a delta means something else."""
        self._head = b""

    def matches(self, block: bytes) -> bool:
        """Is this, as it came, one whole event that differs from the learned one in its text alone?"""
        head = self._head
        if not head or not block.startswith(head) or len(block) > self._longest:
            return False
        text = _TEXT.match(block, len(head))
        if text is None:
            return False
        at = text.end()
        if between := self._between:
            if not block.startswith(between, at):
                return False
            padding = _PADDING.match(block, at + len(between))
            at = padding.end() if padding else at
        if len(block) != at + len(self._tail) or not block.endswith(self._tail):
            return False
        self._tries = _TRIES
        return True

    def learn(self, block: bytes, event: Event) -> None:
        """Make an event the template for those to come.

        Args:
            block: the bytes that it came in, with its blank line.
            event: what they were parsed to; its meaning must be its text (`Watch.stateless_deltas`).
        """
        if not self._tries:
            return
        self._tries -= 1
        key = _KEY.search(block)
        text = key and _TEXT.match(block, key.end())
        if not key or not text or block[text.end() : text.end() + 1] != b'"' or block != encode(event, None):
            return
        self._head, self._between, self._tail = block[: key.end()], b"", block[text.end() :]
        padded = _PADDED.search(block, text.end())
        padding = padded and _PADDING.match(block, padded.end())
        if padded and padding:
            self._between, self._tail = block[text.end() : padded.end()], block[padding.end() :]
