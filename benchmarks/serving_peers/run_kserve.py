"""KServe's SDK around the engine: python run_kserve.py PORT MODEL.onnx."""

import logging
import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from session import open_session


class Echo(Model):
    """x → y, raw where the request was."""

    def __init__(self, path: str) -> None:
        super().__init__("echo")
        self.engine = open_session(path)
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None):
        output = self.engine(payload.inputs[0].as_numpy())
        answer = InferOutput("y", list(output.shape), "FP32")
        raw = bool(payload.use_binary_outputs)
        answer.set_data_from_numpy(output, binary_data=raw)
        return InferResponse(payload.id or "0", self.name, [answer], use_binary_outputs=raw)


if __name__ == "__main__":
    import uvicorn

    _listen = uvicorn.Config.__init__

    def listen_here(self, *arguments, **options):
        _listen(self, *arguments, **{**options, "host": "127.0.0.1"})

    uvicorn.Config.__init__ = listen_here
    logging.disable(logging.INFO)
    ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, access_log_format=None).start(
        [Echo(sys.argv[2])]
    )
