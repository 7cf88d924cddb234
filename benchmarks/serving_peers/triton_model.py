"""Triton's python backend around the engine; the parameter `file` names the model."""

import json

import triton_python_backend_utils as pb_utils
from session import open_session


class TritonPythonModel:
    """x → y."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.engine = open_session(config["parameters"]["file"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", self.engine(x))])
