"""The examples of docs/clients.md do what they say, against servers that are none of ours."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from oip_server import Served, serve
from tiny import ROOT, answer

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    parts = PAGE.split("```")[1::2]
    return [part.removeprefix(language) for part in parts if part.startswith(f"{language}\n")]


def right(feeds: dict[str, Any]) -> dict[str, Any]:
    return {"logits": answer(feeds["x"]).astype(np.float32)}


@contextlib.contextmanager
def serve_grpc() -> Iterator[str]:
    """The address of a gRPC server of the protocol, from tritonclient's own service."""
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    messages = pytest.importorskip(
        "tritonclient.grpc.service_pb2", reason="tritonclient[grpc] is not installed"
    )
    from tritonclient.grpc import service_pb2_grpc

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelInfer(self, request: Any, context: object) -> Any:
            shape = tuple(request.inputs[0].shape)
            x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
            logits = right({"x": x})["logits"]
            reply = messages.ModelInferResponse(model_name=request.model_name)
            reply.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
            reply.raw_output_contents.append(logits.tobytes())
            return reply

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("client", ["tritonclient.http", "tritonclient.grpc", "deploy.client"])
def test_python_examples_give_the_models_answer(client: str) -> None:
    pytest.importorskip(client, reason=f"{client} is not installed")
    (code,) = (block for block in blocks("python") if client in block)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serve(Served(right)))
        code = code.replace("127.0.0.1:8000", url.removeprefix("http://"))
        if "8001" in code:
            code = code.replace("127.0.0.1:8001", stack.enter_context(serve_grpc()))
        names: dict[str, Any] = {}
        exec(compile(code, "clients.md", "exec"), names)
    expected = answer(np.ones((2, 4), np.float32))
    np.testing.assert_allclose(names["logits"], expected, rtol=1e-5)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_examples_are_answered() -> None:
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("curl ")]
    assert len(commands) == 3
    served = Served(right, binary=False)
    with serve(served) as url:
        for command in commands:
            command = command.replace("http://127.0.0.1:8000", url)
            done = subprocess.run(
                ["bash", "-c", f"{command} --fail-with-body"], capture_output=True, timeout=20
            )
            if "health" not in command:  # this server has no health
                assert done.returncode == 0, done.stdout
    assert served.paths == ["/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/infer"]
    assert served.rows == [1]
