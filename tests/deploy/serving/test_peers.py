"""Workers that cannot say how they are do not keep the others from answering."""

import asyncio
import json
from pathlib import Path
from typing import Any

from deploy.serving.peers import ask_metrics, is_any_ready

READY = {"ok": {"text": "up 1", "ready": True}}


def ask(folder: Path, replies: dict[str, Any]) -> tuple[list[str], bool]:
    """What the worker `own` learns from others, which give those replies to all they are asked."""

    def serve(reply: Any) -> Any:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(json.dumps(reply).encode() + b"\n")
            writer.close()

        return answer

    async def run() -> tuple[list[str], bool]:
        servers = [
            await asyncio.start_unix_server(serve(reply), folder / f"{name}.sock")
            for name, reply in replies.items()
        ]
        own = folder / "own.sock"
        found = await ask_metrics(own), await is_any_ready(own)
        for server in servers:
            server.close()
        return found

    return asyncio.run(run())


def test_one_that_failed_to_answer_is_passed_over(tmp_path: Path) -> None:
    assert ask(tmp_path, {"a": {"error": "MemoryError"}, "b": READY}) == (["up 1"], True)


def test_where_all_failed_to_answer_none_is_ready(tmp_path: Path) -> None:
    assert ask(tmp_path, {"a": {"error": "MemoryError"}}) == ([], False)
