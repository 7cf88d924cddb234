"""A head that came before is known again, and nothing else is taken for it."""

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import SILENCE_S, serving
from socketless import Service

from deploy.serving.http.connections import LimitedProtocol
from deploy.serving.http.heads import Head, HeadMemory
from deploy.serving.http.inference import Caller
from deploy.serving.http.intake import WORTH_IT

PATH = "/v2/models/echo/infer"
LINES = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nAccept: */*\r\n\r\n"


WISH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
"""As Java's client sends it with every request."""


def render(body: bytes) -> bytes:
    return LINES % (PATH.encode(), len(body)) + body


def keep(data: bytes, length: int) -> HeadMemory:
    """A memory that was shown a request twice."""
    memory = HeadMemory()
    caller = Caller(b"1", PATH, None, 0.0)
    for _ in range(2):
        memory.keep(data, Head(("echo", ""), {b"content-length": b"%d" % length}, length, caller))
    return memory


@pytest.mark.parametrize("body", [b"", b"{}", b"{ }", b"x" * 1000], ids=len)
def test_a_head_is_known_again_with_a_body_of_any_length(body: bytes) -> None:
    recalled = keep(render(b"{}"), 2).recall(render(body))
    assert recalled is not None
    head, size = recalled
    assert (head.length, render(body)[size:]) == (len(body), body)
    assert head.headers[b"content-length"] == b"%d" % len(body)


def test_the_first_of_a_connection_is_not_kept() -> None:
    memory = HeadMemory()
    memory.keep(render(b"{}"), Head(("echo", ""), {}, 2, Caller(b"1", PATH, None, 0.0)))
    assert memory.recall(render(b"{}")) is None


def test_heads_that_never_come_again_are_not_kept_for_ever() -> None:
    memory = keep(render(b"{}"), 2)
    caller = Caller(b"1", PATH, None, 0.0)
    for number in range(20):
        data = render(b"{}").replace(b"Host: a", b"Host: %d" % number)
        memory.keep(data, Head(("echo", ""), {}, 2, caller))
    assert memory.recall(data) is None


GOOD = render(b"12345")
OTHERS = {
    "another head": GOOD.replace(b"Host: a", b"Host: b"),
    "another path": GOOD.replace(b"echo", b"ecHo"),
    "half of it": GOOD[:-1],
    "more behind it": GOOD + b"\r\n",
    "half of the head": GOOD[:50],
    "nothing": b"",
    "no length": GOOD.replace(b" 5\r\n", b" \r\n"),
    "a negative length": GOOD.replace(b" 5\r\n", b" -5\r\n"),
    "a signed length": GOOD.replace(b" 5\r\n", b" +5\r\n"),
    "a length in other digits": GOOD.replace(b" 5\r\n", " ٥\r\n".encode()),
    "two lengths in one": GOOD.replace(b" 5\r\n", b" 5, 5\r\n"),
    "a length without end": GOOD.replace(b" 5\r\n", b" " + b"0" * 30 + b"5\r\n"),
    "a space behind the length": GOOD.replace(b" 5\r\n", b" 5 \r\n"),
    "a header more": GOOD.replace(b"Accept", b"X: y\r\nAccept"),
    "a header less": GOOD.replace(b"Accept: */*\r\n", b""),
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_what_is_not_the_same_is_left_to_the_parser(data: bytes) -> None:
    assert keep(GOOD, 5).recall(data) is None


@pytest.mark.parametrize("there", [0, 1, 4], ids=str)
def test_a_head_is_known_again_before_its_body_where_that_may_be(there: int) -> None:
    begun = GOOD[: len(GOOD) - 5 + there]
    memory = keep(begun, 5)
    assert memory.recall(begun, 5 - there) is not None
    assert memory.recall(begun, 1) is not None
    assert memory.recall(begun) is memory.recall(begun, 6 - there) is None
    assert memory.recall(GOOD, 6) is not None
    assert memory.recall(GOOD + b"1", 1) is None


@pytest.mark.parametrize(
    "data",
    [
        GOOD + b"\r\n",
        GOOD.replace(b"Accept", b"Content-Length: 5\r\nAccept"),
        GOOD.replace(b"Content-Length: 5\r\n", b""),
    ],
    ids=["a blank line behind it", "two lengths", "no length"],
)
def test_a_head_whose_end_or_length_is_in_doubt_is_not_kept(data: bytes) -> None:
    assert keep(data, 5).recall(data) is None


class Forgetful(HeadMemory):
    """Knows no head again."""

    def recall(self, data: bytes, least: int = 0) -> None:
        return None


def ask(value: float, identity: str = "") -> bytes:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, value]}
    return json.dumps({"id": identity, "inputs": [entry]}).encode()


def spread(body: bytes, spaces: int) -> bytes:
    """The same JSON in a body so large that an intake reads it."""
    return body[:-1] + b" " * spaces + b"}"


ASKED = st.builds(
    ask, st.sampled_from([0.5, 2.25, 1e30]), st.sampled_from(["", "a", "\r\n", "bcd"])
)
BODIES = st.one_of(
    ASKED,
    st.builds(spread, ASKED, st.sampled_from([WORTH_IT - 100, WORTH_IT, WORTH_IT + 3, 200_000])),
    st.sampled_from([b"{", b"", b"\r\n\r\n", b"\r\n", GOOD]),
)
HEADS = st.sampled_from(
    [
        LINES,
        LINES.replace(b"Host: a", b"Host: b"),
        LINES.replace(b"%d", b"  %d \t"),
        LINES.replace(b"%d", b"00%d"),
        LINES.replace(b"Content", b"x-content-length: 3\r\nContent"),
        LINES.replace(b"Accept: */*\r\n", b"Inference-Header-Content-Length: 9\r\n"),
        LINES.replace(b"Accept: */*\r\n", b"Expect: 100-continue\r\n"),
        LINES.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked\r\nX: %d"),
        b"\r\n" + LINES,
        LINES.replace(b"Accept: */*\r\n", WISH),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """What one connection brings, read by read: mostly a request each, and sometimes not."""
    usual = draw(HEADS)
    reads = []
    for body in draw(st.lists(BODIES, min_size=3, max_size=8)):
        head = draw(st.one_of(st.just(usual), st.just(usual), HEADS)) % (PATH.encode(), len(body))
        request = head + body + draw(st.sampled_from([b"", b"", b"", b"\r\n"]))
        there = len(head) + draw(st.sampled_from([-1, 0, 1, 90]))  # of it, where it comes in two
        reads += [request] if draw(st.booleans()) else [request[:there], request[there:]]
    if draw(st.sampled_from([True, True, False])):
        return [read for read in reads if read]
    data = b"".join(reads)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True) if i < j]


@pytest.mark.thorough
@settings(max_examples=150, derandomize=True)
@given(reads=streams())
def test_whatever_comes_is_answered_as_without_a_memory(
    service: Service, reads: list[bytes]
) -> None:
    remembered, plain = (unnumbered(*service.answer(reads, m)) for m in (HeadMemory(), Forgetful()))
    assert remembered == plain


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[LimitedProtocol]:
    """A connection for each head that a parser read."""
    found: list[LimitedProtocol] = []
    begin = LimitedProtocol.on_message_begin

    def count(self: LimitedProtocol) -> None:
        found.append(self)
        begin(self)

    monkeypatch.setattr(LimitedProtocol, "on_message_begin", count)
    return found


def unnumbered(data: bytes, closed: bool) -> tuple[list[bytes], bool]:
    """Without the numbers that requests have by their order over all connections."""
    lines = data.split(b"\r\n")
    return [line for line in lines if not line.startswith(b"x-request-id: ")], closed


def test_the_same_head_is_parsed_twice_and_no_more(
    service: Service, parsed: list[LimitedProtocol]
) -> None:
    values = [0.25, 12.5, 1e20, 3.0, 4.0]
    data, _ = service.answer([render(ask(value)) for value in values], HeadMemory())
    assert len(parsed) == 2
    answers = [json.loads(part) for part in re.findall(rb"\{.*\}", data)]
    assert [answer["outputs"][0]["data"][1] for answer in answers] == pytest.approx(values)


def test_a_large_body_comes_behind_a_known_head(
    service: Service, parsed: list[LimitedProtocol]
) -> None:
    values = [0.25, 12.5, 1e20, 3.0, 4.0]
    requests = [render(spread(ask(value), 100_000)) for value in values]
    reads = [request[i : i + 20_000] for request in requests for i in range(0, 120_000, 20_000)]
    data, _ = service.answer([*reads, render(ask(5.0))], HeadMemory())
    assert len(parsed) == 2
    answers = [json.loads(part) for part in re.findall(rb"\{.*\}", data)]
    told = [answer["outputs"][0]["data"][1] for answer in answers]
    assert told == pytest.approx([*values, 5.0])


def test_a_body_that_looks_like_a_request_is_a_body(service: Service) -> None:
    request = render(ask(1.0))
    head = render(request)[: -len(request)]
    data, _ = service.answer([request, request, request, head, request, request], HeadMemory())
    assert re.findall(rb"HTTP/1.1 (\d+) ", data) == [b"200", b"200", b"200", b"400", b"200"]


def test_a_head_that_wishes_for_another_protocol_is_known_again_too(service: Service) -> None:
    requests = [render(ask(value)).replace(b"Accept: */*\r\n", WISH) for value in (1.0, 2.0, 3.5)]
    memory = HeadMemory()
    data, closed = service.answer(requests, memory)
    assert re.findall(rb"HTTP/1.1 (\d+) ", data) == [b"200"] * 3
    assert not closed
    assert memory.recall(requests[0]) is not None


def test_a_body_over_the_limit_is_refused_behind_a_known_head(service: Service) -> None:
    reads = [render(ask(1.0))] * 3 + [render(bytes(2**20 + 1))]
    data, _ = service.answer(reads, HeadMemory())
    assert re.findall(rb"HTTP/1.1 (\d+) ", data) == [b"200", b"200", b"200", b"413"]


def test_a_model_that_is_gone_is_not_found_by_a_known_head(service: Service) -> None:
    (model,) = service.repository.models()
    memory = HeadMemory()
    service.answer([render(ask(1.0))] * 3, memory)
    service.repository.remove(model)
    try:
        data, _ = service.answer([render(ask(1.0))], memory)
    finally:
        service.repository.add(model)
    assert data.startswith(b"HTTP/1.1 404 ")


def test_a_probe_of_the_parser_agrees_with_it() -> None:
    """What is kept of a head is what the parser calls one, to the byte."""

    class Ends:
        at = 0

        def on_headers_complete(self) -> None:
            self.at = self.seen

        seen = 0

    ends = Ends()
    parser = httptools.HttpRequestParser(ends)
    for number, byte in enumerate(GOOD, 1):
        ends.seen = number
        parser.feed_data(bytes([byte]))
    recalled = keep(GOOD, 5).recall(GOOD)
    assert recalled is not None
    assert recalled[1] == ends.at


@pytest.mark.thorough
def test_an_idle_connection_is_kept_as_long_as_was_asked(identity_bundle: Path) -> None:
    """One timer serves many requests; it counts from the last."""
    with (
        serving(identity_bundle, "--keep-alive", "2") as running,
        socket.create_connection(("127.0.0.1", running.port), SILENCE_S) as connection,
    ):
        for _ in range(8):  # longer in all than a connection may be idle
            asked = time.monotonic()
            connection.sendall(render(ask(2.0)))
            assert receive(connection).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.4)
        assert connection.recv(1) == b""
    assert time.monotonic() - asked > 1.9


def receive(connection: Any) -> bytes:
    """One short answer."""
    data = b""
    while b'"outputs"' not in data:
        data += connection.recv(65536)
    return data
