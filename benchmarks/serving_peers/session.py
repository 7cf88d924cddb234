"""The engine that all servers have in common: ONNX Runtime on one thread, as ours opens it."""

from collections.abc import Callable

import numpy as np
import onnxruntime


def open_session(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """The first output of the model at `path` for its first input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    takes, gives = session.get_inputs()[0].name, session.get_outputs()[0].name

    def call(x: np.ndarray) -> np.ndarray:
        return session.run([gives], {takes: x})[0]

    return call
