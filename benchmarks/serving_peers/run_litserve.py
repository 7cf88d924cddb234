"""LitServe around the engine: python run_litserve.py PORT MODEL.onnx."""

import sys

import litserve
import numpy as np
from session import open_session


class Echo(litserve.LitAPI):
    """x as nested lists → y as nested lists."""

    def setup(self, device):
        self.engine = open_session(sys.argv[2])

    def decode_request(self, request):
        return np.array(request["x"], np.float32)

    def predict(self, x):
        return self.engine(x)

    def encode_response(self, output):
        return {"y": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Echo(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )
