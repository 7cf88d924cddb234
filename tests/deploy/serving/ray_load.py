"""Clients that ask without end, look at every answer, and count what was lost and when."""

import http.client
import json
import threading
import time

import numpy as np
from servers import rows
from tiny import answer


class Client(threading.Thread):
    """Asks until it is told to stop; holds every answer against the closed form."""

    def __init__(self, port: int, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self.port, self.random, self.stop = port, np.random.default_rng(seed), stop
        self.answered = 0
        self.wrong: list[str] = []
        self.lost: list[tuple[float, str]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self.stop.wait(0.005):
            x = self.random.standard_normal((1, 4)).astype(np.float32)
            try:
                connection.request("POST", "/v2/models/tiny/infer", json.dumps(rows(x[0].tolist())))
                got = connection.getresponse()
                body = got.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append((time.monotonic(), repr(error)))
                connection.close()
                continue
            if got.status != 200:
                self.lost.append((time.monotonic(), f"{got.status} {body[:80]!r}"))
                continue
            data = json.loads(body)["outputs"][0]["data"]
            if not np.allclose(data, answer(x)[0], 1e-4, 1e-4):
                self.wrong.append(f"{x} {data}")
            self.answered += 1
        connection.close()


class Load:
    """Eight clients for as long as the block lasts; none may have got a wrong answer."""

    def __init__(self, port: int) -> None:
        self._stop = threading.Event()
        self.clients = [Client(port, seed, self._stop) for seed in range(8)]

    @property
    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    @property
    def lost(self) -> list[tuple[float, str]]:
        return sorted(loss for client in self.clients for loss in client.lost)

    def __enter__(self) -> "Load":
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self.clients:
            client.join(30)
        assert [client.wrong for client in self.clients] == [[]] * 8
