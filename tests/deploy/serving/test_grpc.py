"""Every call of the protocol over gRPC, by a real client and by hand, against a real server."""

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from servers import SILENCE_S, Server, holding, serving, write_slow_script
from tiny import CLASSES, answer, draw
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from deploy.serving.grpc.messages import HEALTH, INFERENCE

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def client(server: Server) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")


def make_input(x: np.ndarray) -> triton.InferInput:
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return given


def call(server: Server, message: Any, **options: Any) -> Any:
    """ModelInfer with a message of our own."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(
            METHOD,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=INFERENCE["ModelInferResponse"].FromString,
        )
        return infer(message, timeout=SILENCE_S, **options)


def make_request(rows: int = 1, **changes: Any) -> Any:
    message = INFERENCE["ModelInferRequest"](model_name="tiny", id="7")
    entry = message.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    if not changes.get("raw"):
        entry.contents.fp32_contents.extend([1.0, 2.0, 3.0, 4.0] * rows)
    message.raw_input_contents.extend(changes.get("raw", ()))
    return message


def refuse(server: Server, message: Any, match: str, code: Any = None) -> None:
    with pytest.raises(grpc.RpcError, match=match) as caught:
        call(server, message)
    assert caught.value.code() == (code or grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("name", sorted(INFERENCE))
def test_messages_agree_with_those_of_tritonclient(name: str) -> None:
    """Same names, numbers and types of all fields, nested ones included."""
    theirs: Any = service_pb2
    for part in name.split("."):
        theirs = getattr(theirs, part)

    def fields(message: Any) -> dict[str, Any]:
        return {f.name: (f.number, f.type) for f in message.DESCRIPTOR.fields}

    ours, published = fields(INFERENCE[name]), fields(theirs)
    assert ours == {key: published[key] for key in ours}
    assert set(published) - set(ours) <= {"parameters"}


def test_parameters_agree_on_the_wire() -> None:
    theirs = service_pb2.ModelInferRequest(model_name="m")
    theirs.parameters["priority"].uint64_param = 3
    theirs.inputs.add(name="x").parameters["a"].string_param = "b"
    ours = INFERENCE["ModelInferRequest"].FromString(theirs.SerializeToString())
    assert ours.parameters["priority"].uint64_param == 3
    assert ours.inputs[0].parameters["a"].string_param == "b"
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == theirs


@pytest.mark.parametrize("size", [1, 5])
def test_tritonclient_gets_the_models_answers(
    client: triton.InferenceServerClient, size: int
) -> None:
    x = draw(size, seed=size)
    result = client.infer("tiny", [make_input(x)], request_id="9", priority=2, timeout=10**7)
    np.testing.assert_allclose(result.as_numpy("logits"), answer(x), rtol=1e-5, atol=1e-5)
    assert result.get_response().id == "9"
    wanted = [triton.InferRequestedOutput("logits")]
    again = client.infer("tiny", [make_input(x)], model_version="1", outputs=wanted)
    np.testing.assert_array_equal(again.as_numpy("logits"), result.as_numpy("logits"))


def test_tritonclient_asks_for_health_metadata_and_index(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", "1")
    assert client.get_server_metadata().name == "deploykit"
    metadata = client.get_model_metadata("tiny")
    assert list(metadata.versions) == ["1"]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "FP32", [-1, 4])
    ]
    assert list(metadata.outputs[0].shape) == [-1, CLASSES]
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index] == [("tiny", "1", "READY")]


def test_tritonclient_reads_our_refusals(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.infer("other", [make_input(draw(1))])
    with pytest.raises(InferenceServerException, match="no version '3'"):
        client.get_model_metadata("tiny", "3")
    with pytest.raises(InferenceServerException, match="may have 8 rows and has 9"):
        client.infer("tiny", [make_input(draw(9))])


def test_typed_contents_are_read_as_well(server: Server) -> None:
    response = call(server, make_request(2))
    got = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(2, CLASSES)
    np.testing.assert_allclose(got, answer(np.array([[1, 2, 3, 4]] * 2)), rtol=1e-5)
    assert response.id == "7"


def test_raw_tensors_that_are_not_as_many_as_inputs_or_as_long(server: Server) -> None:
    refuse(server, make_request(raw=[bytes(16), bytes(16)]), "1 inputs came with 2")
    refuse(server, make_request(raw=[bytes(15)]), "15 bytes of raw data")
    both = make_request()
    both.raw_input_contents.append(bytes(16))
    refuse(server, both, "both contents and raw data")
    refuse(server, INFERENCE["ModelInferRequest"](model_name="tiny"), "'x' is missing")


def test_contents_that_do_not_fit(server: Server) -> None:
    short = make_request()
    del short.inputs[0].contents.fp32_contents[3]
    refuse(server, short, "3 values do not have the shape")
    other = make_request()
    other.inputs[0].contents.int_contents.append(1)
    refuse(server, other, "FP32 belongs into fp32_contents")
    for shape in ([-1, 4], [0, 4], [2**62, 4], [1, 5], []):
        wrong = make_request()
        del wrong.inputs[0].shape[:]
        wrong.inputs[0].shape.extend(shape)
        refuse(server, wrong, "shape")
    twice = make_request()
    twice.inputs.add().CopyFrom(twice.inputs[0])
    refuse(server, twice, "there twice")


def test_a_huge_message_is_refused(server: Server) -> None:
    message = make_request(raw=[bytes(65 * 2**20)])
    refuse(server, message, "larger than max", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert call(server, make_request())


def test_bytes_that_are_no_message(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(METHOD)
        with pytest.raises(grpc.RpcError, match="no such message") as caught:
            infer(b"\xff" * 100, timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_calls_that_are_cancelled_leave_the_others_alone(server: Server) -> None:
    x = draw(1)
    expected = answer(x)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    done = threading.Semaphore(0)
    results: list[Any] = []

    def keep(result: Any, error: Any) -> None:
        results.append((result, error))
        done.release()

    calls = [client.async_infer("tiny", [make_input(x)], keep) for _ in range(60)]
    for number in range(0, 60, 3):
        calls[number].cancel()
    for _ in range(60):
        assert done.acquire(timeout=20)
    good = [result for result, error in results if error is None]
    assert len(good) >= 40
    for result in good:
        np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5, atol=1e-5)


def test_the_standard_health_service(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=HEALTH["HealthCheckResponse"].FromString,
        )
        ask = HEALTH["HealthCheckRequest"]
        assert check(ask(), timeout=20).status == 1
        assert check(ask(service="inference.GRPCInferenceService"), timeout=20).status == 1
        assert check(ask(service="other"), timeout=20).status == 3


def test_a_token_is_asked_for_on_both_sides(pristine: Path) -> None:
    with serving(pristine, env={"DEPLOY_SERVE_TOKEN": "secret"}) as server:
        assert server.request("GET", "/v2/health/ready")[0] == 200
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            status, answered, _ = server.request("GET", "/v2/models/tiny", headers=headers)
            assert (status, answered["www-authenticate"]) == (401, "Bearer")
        good = {"Authorization": "Bearer secret"}
        assert server.request("GET", "/v2/models/tiny", headers=good)[0] == 200
        refuse(server, make_request(), "bearer token", grpc.StatusCode.UNAUTHENTICATED)
        assert call(server, make_request(), metadata=[("authorization", "Bearer secret")])
        assert "secret" not in str(server.events)


def test_a_call_has_as_long_as_it_asks_for(pristine: Path, tmp_path: Path) -> None:
    """Who asks for less than a run takes is told so before it ends, and the others are not."""
    script = write_slow_script(tmp_path, 0.01)
    server = Server(pristine, "--max-batch", "1", script=script).wait_until_ready()
    try:
        assert call(server, make_request())
        with holding(script):
            for microseconds in (1, 100_000):
                message = make_request()
                message.parameters["timeout"].int64_param = microseconds
                begun = time.monotonic()
                refuse(server, message, "too long", grpc.StatusCode.DEADLINE_EXCEEDED)
                assert time.monotonic() - begun >= microseconds / 1e6
        message = make_request()
        message.parameters["timeout"].int64_param = 10_000_000
        assert call(server, message).id == "7"
        series = 'nv_inference_request_failure{model="tiny",version="1",reason="TIMEOUT"}'
        assert server.metrics()[series] == 2
    finally:
        server.stop()
