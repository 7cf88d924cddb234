"""Heads of answers that go out with their bodies.

uvicorn writes the head of an answer before it has the body, which costs one more call of the system
and wakes the client for nothing; here the two go out together.
"""

import asyncio

from deploy.serving.http.encoding import JOIN_BELOW

_CONTINUE = b"HTTP/1.1 100"
"""What uvicorn writes before an answer, where the client waits for it."""


class AnswerWriter:
    """Stands for the transport while answers are written: a head goes out with what follows it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes | memoryview) -> None:
        """Keep the head of an answer, and write what follows."""
        if not self._begun and not bytes(data[:12]).startswith(_CONTINUE):
            self._begun, self._head = True, bytes(data)
            return
        head, self._head = self._head, None
        if head is None:
            self._transport.write(data)
        elif len(data) <= JOIN_BELOW:
            self._transport.write(head + data)
        else:
            self._transport.writelines((head, data))

    def end_answer(self) -> None:
        """Write a head that nothing followed; the next write begins another answer."""
        head, self._head, self._begun = self._head, None, False
        if head is not None:
            self._transport.write(head)

    def close(self) -> None:
        """Write what is kept, and close."""
        self.end_answer()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the transport is."""
        return self._transport.is_closing()
