"""What a user would pick instead of this product, each as an engine in a child process.

`benchmarks/peers.py` makes the files and runs these functions in children through `ChildProcess`.
Every recipe is the one of its own documentation; nothing is tuned against it.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray[Any, Any]]
Call = Callable[[Feeds], dict[str, np.ndarray[Any, Any]]]

_STATE: dict[str, Any] = {}


def open_peer(kind: str, path: str, threads: int) -> None:
    """Open `path` as the peer `kind`; a key of `OPENERS`."""
    _STATE["call"] = OPENERS[kind](path, threads)


def run_peer(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
    """One call."""
    call: Call = _STATE["call"]
    return call(feeds)


def time_peer(feeds: Feeds | None, calls: int, warmup: int) -> np.ndarray[Any, Any]:
    """Seconds of each call; `feeds` are kept, None takes those of before."""
    if feeds is not None:
        _STATE["feeds"] = feeds
    call, kept = _STATE["call"], _STATE["feeds"]
    for _ in range(warmup):
        call(kept)
    times = np.empty(calls)
    for index in range(calls):
        start = time.perf_counter()
        call(kept)
        times[index] = time.perf_counter() - start
    return times


def _load_module(path: str, threads: int) -> Any:
    import timm_zoo  # noqa: F401  lets timm be imported
    import torch

    torch.set_num_threads(threads)
    return torch.load(path, weights_only=False).eval()


def _torch_call(module: Any, convert: Callable[[Any], Any]) -> Call:
    import torch

    def call(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        (array,) = feeds.values()
        with torch.inference_mode():
            output = module(convert(torch.from_numpy(array)))
        return {"y": output.float().numpy()}

    return call


def _open_eager(path: str, threads: int) -> Call:
    return _torch_call(_load_module(path, threads), lambda x: x)


def _open_channels_last(path: str, threads: int) -> Call:
    import torch

    module = _load_module(path, threads).to(memory_format=torch.channels_last)
    return _torch_call(module, lambda x: x.contiguous(memory_format=torch.channels_last))


def _open_bf16(path: str, threads: int) -> Call:
    import torch

    module = _load_module(path, threads).to(torch.bfloat16, memory_format=torch.channels_last)
    return _torch_call(module, lambda x: x.to(torch.bfloat16, memory_format=torch.channels_last))


def _open_compiled(path: str, threads: int) -> Call:
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    compiled = torch.compile(_load_module(path, threads))

    def call(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        (array,) = feeds.values()
        with torch.no_grad():  # freezing wants no_grad
            output = compiled(torch.from_numpy(array))
        return {"y": output.numpy()}

    return call


def _open_onnxruntime(path: str, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": session.run(None, dict(feeds))[0]}

    return call


def _open_openvino(hint: str) -> Callable[[str, int], Call]:
    def open_file(path: str, threads: int) -> Call:
        import openvino

        core = openvino.Core()
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this CPU has no bf16 instructions")
        model = core.read_model(path)
        model.reshape([1, *(d.get_length() for d in list(model.inputs[0].partial_shape)[1:])])
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": hint,
        }
        request = core.compile_model(model, "CPU", options).create_infer_request()

        def call(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
            (array,) = feeds.values()
            request.infer([array], share_inputs=True, share_outputs=True)
            return {"y": np.array(request.get_output_tensor(0).data)}

        return call

    return open_file


OPENERS: Mapping[str, Callable[[str, int], Call]] = {
    "eager": _open_eager,
    "eager channels_last": _open_channels_last,
    "eager bf16": _open_bf16,
    "torch.compile, frozen": _open_compiled,
    "onnxruntime fp32": _open_onnxruntime,
    "onnxruntime quantize_static": _open_onnxruntime,
    "openvino fp32": _open_openvino("f32"),
    "openvino bf16": _open_openvino("bf16"),
    "openvino nncf int8": _open_openvino("f32"),
}


def quantize_static(source: str, target: str, samples: np.ndarray[Any, Any]) -> None:
    """ONNX Runtime's own post-training quantization: Q/DQ, per channel, uint8 activations."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(samples)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            row = next(self._rows, None)
            return None if row is None else {"x": row[None]}

    prepared = str(Path(target).with_suffix(".prepared.onnx"))
    quant_pre_process(source, prepared)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def quantize_nncf(
    source: str, target: str, samples: np.ndarray[Any, Any], transformer: bool
) -> None:
    """NNCF's post-training quantization, its defaults; its transformer recipe where it is one."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    dataset = nncf.Dataset([row[None] for row in samples])
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    quantized = nncf.quantize(model, dataset, model_type=kind, subset_size=len(samples))
    openvino.save_model(quantized, target, compress_to_fp16=False)
