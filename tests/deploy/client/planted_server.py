"""A server of the standard library alone whose delays and faults are known, run as a process.

It answers one request at a time and blocks while it works, so what callers wait for follows from
the arrivals by arithmetic.
"""

import argparse
import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

METADATA = {
    "name": "planted",
    "versions": ["1"],
    "platform": "none",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
ANSWER = {
    "model_name": "planted",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}],
}


class Planted:
    """How the server behaves, and how many inferences it was asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.asked = 0
        self.log = open(options.log, "w", buffering=1) if options.log else None  # noqa: SIM115

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next((int(s[15:]) for s in lines if s.startswith(b"content-length:")), 0)
                await reader.readexactly(length)
                if not await self.answer(head.split(b" ", 2)[1].decode(), writer):
                    break
        writer.close()

    async def answer(self, path: str, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is kept."""
        options = self.options
        if not path.endswith("/infer"):
            found = {"/v2": {"name": "planted", "version": "7"}, "/v2/repository/index": [METADATA]}
            body = json.dumps(found.get(path, METADATA)).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return True
        self.asked += 1
        if options.silent:
            return True
        began = time.perf_counter()
        time.sleep(options.delay + (options.stall if self.asked == options.stall_at else 0))
        if self.log is not None:
            print(time.perf_counter() - began, file=self.log)
        failed = options.fail_every and self.asked % options.fail_every == 0
        status = b"503 Service Unavailable" if failed else b"200 OK"
        body = json.dumps({"error": "full"} if failed else ANSWER).encode()
        if options.chunked:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            return True
        close = b"Connection: close\r\n" if options.close == "said" else b""
        head = b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, close, len(body))
        if options.dribble:
            for byte in head + body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        else:
            writer.write(head + body)
        return not options.close


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--stall", type=float, default=0.0)
    parser.add_argument("--stall-at", type=int, default=0)
    parser.add_argument("--fail-every", type=int, default=0)
    parser.add_argument("--close", choices=["said", "abruptly"])
    for flag in ("--silent", "--chunked", "--dribble"):
        parser.add_argument(flag, action="store_true")
    for option in ("--certificate", "--key", "--log"):
        parser.add_argument(option)
    options = parser.parse_args()
    tls = None
    if options.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.certificate, options.key)
    serve = Planted(options).serve
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def run_planted(*options: object) -> Iterator[str]:
    """The URL of a server with these options, which ends with the block."""
    command = [sys.executable, "-S", __file__, *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


if __name__ == "__main__":
    asyncio.run(main())
