"""The OpenAPI document against a running server, by a fuzzer that reads it: schemathesis.

Nothing it comes up with may be answered with a 5xx, or with a status, a content type or a body that
the document does not have.
"""

import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from servers import Server

from deploy.serving.http.openapi import make_document

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.response_headers_conformance,
    schemathesis.checks.allow_header_conformance,
    schemathesis.checks.unsupported_method,
]
QUICK = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=150)


document = schemathesis.openapi.from_dict(make_document())


def aim(case: Any) -> None:
    """Three of four cases go to the model that there is, and half of those fit its signature.

    What is left of a case is as it was drawn: parameters, outputs, id, headers.
    """
    choice = zlib.crc32(repr((case.path_parameters, case.body)).encode()) % 8
    if not case.path_parameters or choice < 2:
        return
    case.path_parameters = {key: "tiny" if key == "model" else "1" for key in case.path_parameters}
    body = case.body
    if choice < 5 and isinstance(body, dict) and isinstance(body.get("inputs"), list):
        good = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        drawn = next((entry for entry in body["inputs"] if isinstance(entry, dict)), {})
        case.body = {**body, "inputs": [{**drawn, **good}]}


@document.parametrize()
@QUICK
def test_every_answer_is_documented_and_none_is_a_failure(case: Any, server: Server) -> None:
    aim(case)
    case.call_and_validate(base_url=f"http://{server.address}", checks=CHECKS)


@pytest.mark.slow
@document.parametrize()
@LONG
def test_every_answer_is_documented_in_many_more_cases(case: Any, server: Server) -> None:
    aim(case)
    case.call_and_validate(base_url=f"http://{server.address}", checks=CHECKS)


def test_the_document_is_the_one_that_the_server_gives(server: Server) -> None:
    assert server.ask("/openapi.json") == make_document()
