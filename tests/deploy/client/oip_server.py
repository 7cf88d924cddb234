"""A server of the Open Inference Protocol, of the standard library and numpy, in a thread.

It shares no code with the client: the binary extension is read and written here by hand.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

CODES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4", "BOOL": "?", "FP16": "<f2"}
NAMES = {np.dtype(code).str: name for name, code in CODES.items()}


@dataclass
class Served:
    """What the server is, and what it was asked.

    Attributes:
        model: named arrays to named arrays.
        most: rows that it takes at once.
        binary: whether it answers in the binary extension.
    """

    model: Callable[[dict[str, Any]], dict[str, Any]]
    names: tuple[str, ...] = ("tiny",)
    inputs: tuple[tuple[str, str, list[int]], ...] = (("x", "FP32", [-1, 4]),)
    outputs: tuple[tuple[str, str, list[int]], ...] = (("logits", "FP32", [-1, 3]),)
    parameters: dict[str, Any] = field(default_factory=dict)
    most: int = 64
    binary: bool = True
    index: bool = True
    token: str | None = None
    rows: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def metadata(self, name: str) -> dict[str, Any]:
        def describe(tensors: Any) -> list[dict[str, Any]]:
            return [{"name": n, "datatype": t, "shape": s} for n, t, s in tensors]

        return {
            "name": name,
            "versions": ["1"],
            "platform": "numpy",
            "inputs": describe(self.inputs),
            "outputs": describe(self.outputs),
            "parameters": self.parameters,
        }


def read_inputs(body: bytes, length: str | None) -> dict[str, Any]:
    size = len(body) if length is None else int(length)
    head, place = json.loads(body[:size]), size
    arrays = {}
    for entry in head["inputs"]:
        dtype = np.dtype(CODES[entry["datatype"]])
        if "data" in entry:
            arrays[entry["name"]] = np.array(entry["data"], dtype).reshape(entry["shape"])
            continue
        count = entry["parameters"]["binary_data_size"]
        raw = body[place : place + count]
        arrays[entry["name"]] = np.frombuffer(raw, dtype).reshape(entry["shape"])
        place += count
    assert place == len(body)
    return arrays


def write_outputs(outputs: dict[str, Any], binary: bool) -> tuple[dict[str, str], bytes]:
    entries, chunks = [], []
    for name, array in outputs.items():
        entry = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.str]}
        if binary:
            chunks.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    head = json.dumps({"outputs": entries}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return headers, head + b"".join(chunks)


def make_handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

        def is_known(self) -> bool:
            wanted = None if served.token is None else f"Bearer {served.token}"
            if self.headers["Authorization"] != wanted:
                self.reply({"error": "who are you?"}, 401)
            return self.headers["Authorization"] == wanted

        def do_GET(self) -> None:
            served.paths.append(self.path)
            if not self.is_known():
                return
            if self.path == "/v2":
                self.reply({"name": "stdlib", "version": "3"})
            elif self.path.removeprefix("/v2/models/") in served.names:
                self.reply(served.metadata(served.names[0]))
            else:
                self.reply({"error": "no such thing"}, 404)

        def do_POST(self) -> None:
            served.paths.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.is_known():
                return
            if self.path == "/v2/repository/index" and served.index:
                self.reply([{"name": name, "state": "READY"} for name in served.names])
                return
            if not self.path.endswith("/infer") or self.path.split("/")[3] not in served.names:
                self.reply({"error": "no such model"}, 404)
                return
            feeds = read_inputs(body, self.headers["Inference-Header-Content-Length"])
            rows = len(next(iter(feeds.values())))
            served.rows.append(rows)
            if rows > served.most:
                self.reply({"error": f"{rows} rows are more than {served.most}"}, 400)
                return
            headers, answer = write_outputs(served.model(feeds), served.binary)
            self.send(200, headers, answer)

        def reply(self, value: object, status: int = 200) -> None:
            self.send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextlib.contextmanager
def serve(served: Served) -> Iterator[str]:
    """The URL of the server, which ends with the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(served))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
