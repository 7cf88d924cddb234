"""What a worker asks the others of its supervisor, over the sockets that lie beside its own."""

import asyncio
import json
from pathlib import Path
from typing import Any

_WAIT_S = 1.0
"""Seconds that a worker has to answer; one that is being replaced does not."""


async def ask_metrics(own: Path) -> list[str]:
    """The metrics of all other workers."""
    return [reply["text"] for reply in await _ask_all(own, "metrics")]


async def is_any_ready(own: Path) -> bool:
    """Whether another worker takes requests for all its models."""
    return any(reply["ready"] for reply in await _ask_all(own, "status"))


async def _ask_all(own: Path, command: str) -> list[dict[str, Any]]:
    peers = [path for path in sorted(own.parent.glob("*.sock")) if path != own]
    replies = await asyncio.gather(*(_ask(path, command) for path in peers))
    return [reply for reply in replies if reply is not None]


async def _ask(path: Path, command: str) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(_WAIT_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=2**24)
            writer.write(json.dumps({"command": command}).encode() + b"\n")
            reply = json.loads(await reader.readline())
            writer.close()
    except (OSError, ValueError, TimeoutError):
        return None
    done: dict[str, Any] | None = reply.get("ok")  # it failed where there is none
    return done
