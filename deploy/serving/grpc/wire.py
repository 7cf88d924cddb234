"""How many parts a ModelInferRequest has, told on the wire before it is parsed.

An empty output takes two bytes of a message, and seventy of memory and three microseconds once it
is parsed, so a message of the largest size could hold the event loop for minutes. Raw tensors are
one part each, however large, and are skipped. What is read here is the form of protobuf: tags with
the number of a field and how its value is written, and lengths in front of what is nested.
"""

from collections.abc import Mapping

import numpy as np

from deploy.serving.errors import MalformedRequestError

LOOKED_AT = 2**15
"""Bytes of a message from which its parts are counted: fewer cannot be too many."""

MOST_PARTS = 2**14
MOST_VALUES = 2**22
"""Of typed contents and shapes, as many as JSON may have."""

_WINDOW = 2**20
"""Bytes that are counted at a time; a multiple of what any value takes."""

_VARINT, _FIXED64, _NESTED, _FIXED32 = 0, 1, 2, 5

_Numbers = Mapping[int, int]
"""By number of a field, the bytes of one of its values; 0: from one to ten of them."""

_CONTENTS: _Numbers = {1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 4, 7: 8}
_SHAPE: _Numbers = {3: 0}
_INPUT, _OUTPUT, _TYPED = 5, 6, 5
"""Numbers of fields: of a request its inputs and outputs, of an input its contents."""


def check_parts(data: bytes) -> None:
    """Refuse a message that has more parts than a request may have.

    Where its form is broken the rest is not counted, since the parser ends there as well.

    Raises:
        MalformedRequestError: it has.
    """
    if len(data) > LOOKED_AT:
        _Parts(data).count_request()


class _Parts:
    """The parts of one message that were counted so far."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parts = 0
        self._values = 0

    def count_request(self) -> None:
        for number, start, end in self._fields(0, len(self._data)):
            if number == _INPUT:
                self._count_input(start, end)
            elif number == _OUTPUT:
                self._count_fields(start, end, {})

    def _count_input(self, start: int, end: int) -> None:
        for number, inside, after in self._fields(start, end):
            if number == _TYPED:
                self._count_fields(inside, after, _CONTENTS)
            elif number in _SHAPE:
                self._count_values(inside, after, _SHAPE[number])

    def _count_fields(self, start: int, end: int, numbers: _Numbers) -> None:
        for number, inside, after in self._fields(start, end):
            if number in numbers:
                self._count_values(inside, after, numbers[number])

    def _count_values(self, start: int, end: int, width: int) -> None:
        """Values that are packed into one part; of varied length, each ends below 128."""
        for begin in range(start, end, _WINDOW):
            size = min(end - begin, _WINDOW)
            if width:
                self._values += size // width
            else:
                window = np.frombuffer(self._data, np.uint8, size, begin)
                self._values += int(np.count_nonzero(window < 128))
            if self._values > MOST_VALUES:
                raise MalformedRequestError(
                    f"the message has more than {MOST_VALUES} values in contents; send tensors raw"
                )

    def _fields(self, start: int, end: int) -> "list[tuple[int, int, int]]":
        """Number, start and end of every nested field; the others are counted and passed by."""
        found = []
        while start < end:
            tag, start = self._read_varint(start, end)
            self._parts += 1
            if self._parts > MOST_PARTS:
                raise MalformedRequestError(f"the message has more than {MOST_PARTS} parts")
            kind = tag & 7
            if kind == _NESTED:
                size, start = self._read_varint(start, end)
                found.append((tag >> 3, start, min(start + size, end)))
                start += size
            elif kind == _VARINT:
                _, start = self._read_varint(start, end)
            elif kind == _FIXED64:
                start += 8
            elif kind == _FIXED32:
                start += 4
        return found

    def _read_varint(self, start: int, end: int) -> tuple[int, int]:
        """A number of varied length, and where it ends: with all the rest, where it does not."""
        value = 0
        for index in range(10):
            if start + index >= end:
                break
            byte = self._data[start + index]
            value |= (byte & 127) << 7 * index
            if byte < 128:
                return value, start + index + 1
        return value, end
