"""HTTP/1.1 as the tests' own servers, proxies and clients read and write it, byte by byte and without a library."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """A request's or an answer's head, with the blank line that ends it."""
    return await reader.readuntil(b"\r\n\r\n")


def first_line(head: bytes) -> list[str]:
    """The three parts of a request line or a status line."""
    return head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)


def header_list(head: bytes) -> list[tuple[str, str]]:
    """Names as they were sent, values without the spaces around them."""
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line)
    return [(name, value.strip()) for name, _, value in pairs]


def headers(head: bytes) -> dict[str, str]:
    """By lower-case name; the last one of a name."""
    return {name.lower(): value for name, value in header_list(head)}


def is_chunked(head: bytes) -> bool:
    return "chunked" in headers(head).get("transfer-encoding", "").lower()


def content_length(head: bytes) -> int:
    return int(headers(head).get("content-length", 0))


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; of nothing, the last one with the body's end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """The next chunk's data, empty for the last one, whose trailers are read, too."""
    size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
    if size:
        return (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b""


async def read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The whole body that its head announces."""
    if not is_chunked(head):
        return await reader.readexactly(content_length(head))
    chunks: list[bytes] = []
    while data := await read_chunk(reader):
        chunks.append(data)
    return b"".join(chunks)


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a RST."""
    with contextlib.suppress(OSError):
        linger_zero = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
    writer.transport.abort()
