"""Writes the client's synchronous transport from the asynchronous one, and its transports for httpx2 from httpx's.

    python .ci/twins.py [--check]

`--check` writes nothing and fails where a file is not what would be written. Names are replaced as whole words only, so
what a word may become stands in one table.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "relay" / "client"

SYNC = {
    r"async (?=def|for|with)": "",
    r"await ": "",
    r"\bAsync(Transport|StreamBody|RefusalBody|Credentials|Cancellation)\b": r"Sync\1",
    r"\bAsync(HTTPTransport|Iterator|Iterable|Generator|Headers|Sleep)\b": r"\1",
    r"\bhandle_async_request\b": "handle_request",
    r"\basync_auth_flow\b": "sync_auth_flow",
    r"\b__aiter__\b": "__iter__",
    r"\b__anext__\b": "__next__",
    r"\b__aenter__\b": "__enter__",
    r"\b__aexit__\b": "__exit__",
    r"\baclose\b": "close",
    r"\basend\b": "send",
    r"\baiter\(": "iter(",
    r"\banext\(": "next(",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"relay\.client\.async_transport": "relay.client.sync_transport",
    r"The asynchronous": "The synchronous",
}
HTTPX2 = {
    r"\bhttpx\b": "httpx2",
    r"openai before 3, anthropic before 2, litellm and others": "openai from 3, anthropic from 2, and others",
}
TWINS = (("async_transport.py", "sync_transport.py", SYNC), ("httpx.py", "httpx2.py", HTTPX2))
MARK = "# Written by .ci/twins.py from {}: change that, and run `make generate`.\n"


def twin(source: str, words: dict[str, str], of: str) -> str:
    """What the file `of` becomes."""
    for word, becomes in words.items():
        source = re.sub(word, becomes, source)
    source = MARK.format(of) + source
    for tool in (["check", "--quiet", "--select", "I", "--fix"], ["format"]):
        named = ["--config", str(ROOT / "pyproject.toml"), "--stdin-filename", str(CLIENT / of)]
        command = [sys.executable, "-m", "ruff", *tool, *named, "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


def main() -> int:
    stale = []
    for of, name, words in TWINS:
        target = CLIENT / name
        wanted = twin((CLIENT / of).read_text(encoding="utf-8"), words, of)
        if target.read_text(encoding="utf-8") != wanted:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                target.write_text(wanted, encoding="utf-8")
    for name in stale:
        print(name)
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
