"""What may be left when everything has ended: nothing in the store that stays, nothing in the processes that grows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import redis

from tests.torture.bounds import LEASE
from tests.torture.evidence import Found
from tests.torture.generation import Generation, closing
from tests.torture.oracle import ENDS_HAVE_IDS
from tests.torture.wire import Parser
from tests.torture.world import World

# Kept for as long as the deployment exists.
_KEPT = ("relay:secret", "relay:replicas")
_MEMORY = 96 * 1024**2
_DESCRIPTORS = 40


async def residue(world: World) -> list[Found]:
    """Waits for what takes a lease or two to vanish."""
    deadline = world.now() + 6 * LEASE
    while True:
        left = await asyncio.to_thread(lambda: list(_store(world)))
        if not left or world.now() > deadline:
            break
        await asyncio.sleep(0.25)
    audited = await asyncio.to_thread(lambda: list(_audit(world)))
    return [*left, *audited, *_processes(world)]


def _store(world: World) -> Iterator[Found]:
    forever: list[str] = []
    streams: dict[str, int] = {}
    for server in world.backend.primaries():
        client = server.client()
        for key in client.scan_iter(count=1000):
            if client.pttl(key) == -1 and key not in _KEPT:
                forever.append(key)
            if key.startswith("relay:replica:") and client.type(key) == "set":
                streams[key] = int(client.scard(key))
        try:
            signed = int(client.zcard("relay:replicas"))
        except redis.ResponseError:  # another shard's
            continue
        most = len(world.replicas) * world.workers
        if signed > most:
            yield Found("residue", f"{signed} replicas are on record, and {most} run", at=world.now())
    forever = [key for key in forever if not key.startswith("relay:replica:")]
    if forever:
        yield Found("residue", f"{len(forever)} keys without a time to live: {forever[:5]}", at=world.now())
    if full := {key: size for key, size in streams.items() if size}:
        yield Found("residue", f"replicas' sets of streams: {full}", at=world.now())


def _audit(world: World) -> Iterator[Found]:
    """What is left of every log is a prefix of its generation, with one end, which is its last."""
    for stream, seen in world.evidence.streams.items():
        call = world.evidence.call_of.get(stream)
        if not seen.logged or call is None:
            continue
        generation, n, ended = Generation(seen.spec, call), 0, False
        for name, fields in world.backend.entries(stream):
            (content,) = list(fields.values())[:1]
            if ended or name not in (f"{n + 1}-0", f"{n}-1"):
                yield Found("log", f"{stream}: entry {name} behind {n}, ended={ended}", at=world.now())
                break
            if name.endswith("-1"):
                ended = True
                continue
            n += 1
            (event,) = Parser().feed(content)
            if event.id != f"{stream}.{n}" or (
                n <= generation.total and (event.type, event.data) != generation.frame(n)
            ):
                wrong = n > generation.total or closing(seen.spec.api, event.type, event.data) is None
                if wrong or ENDS_HAVE_IDS:
                    yield Found("log", f"{stream}: entry {n} holds {content[:200]!r}", at=world.now())
                    break
        if n and not ended:
            yield Found("log", f"{stream}: {n} events and no end", at=world.now())


def _processes(world: World) -> Iterator[Found]:
    for replica in world.replicas:
        if not replica.running:
            yield Found("died", f"replica {replica.number} has ended\n{replica.log()[-1500:]}", at=world.now())
            continue
        warm = replica.warm or {}
        for pid, (resident, descriptors) in replica.measure().items():
            if pid not in warm:
                continue
            more = resident - warm[pid][0]
            opened = descriptors - warm[pid][1]
            world.counts["grown MiB"] = max(world.counts["grown MiB"], more >> 20)
            world.counts["grown descriptors"] = max(world.counts["grown descriptors"], opened)
            if more > _MEMORY:
                yield Found(
                    "memory", f"process {pid} of replica {replica.number} grew by {more >> 20} MiB", at=world.now()
                )
            if opened > _DESCRIPTORS:
                yield Found("descriptors", f"process {pid} of replica {replica.number}: {opened} more", at=world.now())


def logs(world: World) -> list[Found]:
    """What the replicas' logs say that no fault may lead to; call it when they have ended."""
    found = []
    for replica in world.replicas:
        unexpected = replica.unexpected()
        where = f"replica {replica.number} ({len(unexpected)} in all)"
        found += [Found("traceback", f"{where}:\n{text}", at=world.now()) for text in unexpected[:3]]
    return found
