"""Calls of gRPC by hand, over HTTP/2: begun and never ended, answered and never taken."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 65535
PIECE = 16384


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + _id(stream) + payload


def _id(number: int) -> bytes:
    return struct.pack(">I", number)


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that is in no table, without Huffman's code."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class RawCalls:
    """Calls to one method on one connection, whose messages are sent as far as windows allow.

    No window is ever opened for the answers: 64 KiB of them are taken in all.

    Args:
        port: of the server.
        path: of the method.
    """

    def __init__(self, port: int, path: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._path = path
        self._changed = threading.Condition()
        self._windows: dict[int, int] = {0: INITIAL_WINDOW}
        self._first = INITIAL_WINDOW
        self.received: dict[int, int] = {}
        self.ended = False
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, stream: int, size: int) -> None:
        """A call whose message is announced to have `size` bytes; none of them is sent yet."""
        head = b"\x83\x86" + _literal(b":path", self._path) + _literal(b":authority", b"a")
        head += _literal(b"te", b"trailers") + _literal(b"content-type", b"application/grpc")
        with self._changed:
            self._windows[stream] = self._first
        self._socket.sendall(_frame(HEADERS, END_HEADERS, stream, head))
        self._send_data(stream, b"\0" + struct.pack(">I", size))

    def push(self, stream: int, size: int, seconds: float) -> int:
        """Send so many zeros of a message, or as many as the server takes in time."""
        return self._push(stream, bytes(size), seconds)

    def ask(self, stream: int, message: bytes, seconds: float = 5.0) -> None:
        """A whole call, whose answer is not waited for."""
        self.begin(stream, len(message))
        assert self._push(stream, message, seconds) == len(message)
        self._send_data(stream, b"", END_STREAM)

    def _push(self, stream: int, data: bytes, seconds: float) -> int:
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            if not self._wait_for(stream, len(piece), seconds):
                return at
            self._send_data(stream, piece)
        return len(data)

    def _wait_for(self, stream: int, length: int, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: self._windows[0] >= length and self._windows[stream] >= length, seconds
            )

    def _send_data(self, stream: int, data: bytes, flags: int = 0) -> None:
        with self._changed:
            self._windows[0] -= len(data)
            self._windows[stream] -= len(data)
        self._socket.sendall(_frame(DATA, flags, stream, data))

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as file:
            while head := file.read(9):
                length = int.from_bytes(head[:3])
                self._take(head[3], head[4], int.from_bytes(head[5:9]), file.read(length))
        self.ended = True

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._read_settings(payload)
            self._socket.sendall(_frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            with self._changed:
                self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload)
                self._changed.notify_all()
        elif kind == DATA:
            self.received[stream] = self.received.get(stream, 0) + len(payload)

    def _read_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2]) == 4:
                with self._changed:
                    larger = int.from_bytes(payload[at + 2 : at + 6]) - self._first
                    self._first += larger
                    for stream in self._windows.keys() - {0}:
                        self._windows[stream] += larger

    def close(self) -> None:
        """End the connection, whatever is on it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.join(5)


@contextlib.contextmanager
def calling(port: int, path: bytes) -> Iterator[RawCalls]:
    """Raw calls that end."""
    calls = RawCalls(port, path)
    try:
        yield calls
    finally:
        calls.close()
