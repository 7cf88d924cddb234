"""Whether this machine can run an engine in a precision, and what would help."""

from deploy.engines.device import CUDA_GRAPHS, NO_GPU, runs_on_gpu
from deploy.engines.process import call_in_child
from export.gpu import read_gpu
from export.optional import DISTRIBUTION, is_installed

_EXTRAS = {"torch": "build", "openvino": "openvino", "tensorrt_rtx": "rtx", "tensorrt": "trt"}


def find_obstacle(engine: str, precision: str, variant: str = "") -> str | None:
    """Why this machine cannot build or run it at all, with the fix where there is one."""
    if not is_installed(engine):
        extra = _EXTRAS.get(engine)
        package = f"'{DISTRIBUTION}[{extra}]'" if extra else engine
        return f"{engine} is not installed: pip install {package}"
    if engine == "onnxruntime" and runs_on_gpu(variant):
        from deploy.engines.onnxruntime_cuda import explain_no_provider

        gpu = read_gpu()
        if gpu is None:
            return NO_GPU
        if variant == CUDA_GRAPHS:
            from deploy.engines.graph_plans import explain_no_graphs

            return explain_no_provider(gpu) or explain_no_graphs()
        return explain_no_provider(gpu)
    wants_bf16 = (engine, precision) == ("openvino", "bf16")
    if wants_bf16 and not call_in_child("deploy.engines.openvino:cpu_has_bf16"):
        return "this CPU has no bf16 instructions"
    return None
