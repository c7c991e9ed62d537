"""The pure core: what the formats say and what the relay answers.

Nothing here does I/O and nothing here imports asyncio, httpx, redis or starlette
(`tests/protocol/test_purity.py` holds it to that), so every rule can be tested with bytes alone.
"""
