"""Which engines are tried in which precisions, from which graph."""

from dataclasses import dataclass, field, replace

from deploy.engines.base import name_candidate
from deploy.engines.device import CPU, CUDA, CUDA_GRAPHS, CUDA_NHWC
from export.artifacts import OnnxModel
from export.gpu import GpuFacts
from export.onnx.files import read_model
from export.optional import is_installed
from export.tensorrt.options import DEFAULT_TARGETS, RTX_TARGETS, BuildOptions
from quantize.transformers.matmuls import weight_share


@dataclass(frozen=True)
class Plan:
    """One candidate before anything is built.

    Attributes:
        graph: the ONNX graph that it opens or is built from; see `GRAPHS`.
        variant: see `EngineSpec`.
    """

    engine: str
    precision: str
    graph: str
    variant: str = ""

    @property
    def name(self) -> str:
        """As reports call it."""
        return name_candidate(self)


PLANS = (
    Plan("onnxruntime", "fp32", "fp32"),
    Plan("onnxruntime", "int8", "int8-onnxruntime"),
    Plan("openvino", "fp32", "fp32"),
    Plan("openvino", "bf16", "fp32"),
    Plan("openvino", "int8", "int8-openvino"),
)

_GPU_GRAPHS = {
    "tf32": "fp32",
    "fp16": "fp16-tensorrt",
    "bf16": "bf16-tensorrt",
    "int8": "int8-tensorrt",
}
"""By precision; without TensorFloat-32 the first is fp32."""

CUDA_PLANS = (
    Plan("onnxruntime", "tf32", "fp32", CUDA),
    Plan("onnxruntime", "fp16", "fp16-tensorrt", CUDA),
    Plan("onnxruntime", "tf32", "fp32", CUDA_GRAPHS),
    Plan("onnxruntime", "fp16", "fp16-tensorrt", CUDA_GRAPHS),
)
"""ONNX Runtime on the GPU. Between Q/DQ pairs its CUDA provider computes in float, so that int8
would cost time. For pools, Pad, Resize and most reductions it has no bfloat16, and nothing casts
them: such a file is not opened. With CUDA graphs the host launches once where it else launches
every kernel, which is most of the time of a small batch; without them calls overlap."""

CUDA_CONV_PLANS = (Plan("onnxruntime", "fp16", "fp16-tensorrt", CUDA_NHWC),)
"""With channels last, as tensor cores read them; else convolutions transpose what they read.
Whether that pays depends on what is between them, so both are measured."""

PRODUCT_PLANS = (
    Plan("onnxruntime", "int8", "int8-dynamic", "dynamic"),
    Plan("onnxruntime", "int8", "int8-weights", "weights"),
    Plan("onnxruntime", "int4", "int4-weights", "weights"),
    Plan("openvino", "int8", "int8-weights", "weights"),
    Plan("openvino", "int4", "int4-weights", "weights"),
)
"""For models whose work is to multiply by matrices, as transformers do; see `choose_plans`."""

MIN_PRODUCT_SHARE = 0.5
MIN_PRODUCT_WEIGHTS = 2**18
"""A megabyte of float32: below it there is nothing to save."""


@dataclass(frozen=True)
class GpuTarget:
    """What is built for NVIDIA GPUs.

    Attributes:
        options: for the builder.
        asked: engines of NVIDIA TensorRT, and of ONNX Runtime on CUDA, are planned though they may
            not run here: ``--target cuda``.
        gpu: that of this machine; None: there is none.
        device: as the user gave it; with ``cpu``, ONNX Runtime stays there unless `asked`.
    """

    options: BuildOptions = field(default_factory=BuildOptions)
    asked: bool = False
    gpu: GpuFacts | None = None
    device: str = "auto"

    def options_for(self, engine: str) -> BuildOptions:
        """`options`; where no targets were chosen, those of RTX hold this machine's GPU too."""
        options, gpu = self.options, self.gpu
        own = () if gpu is None else tuple({gpu.target} & set(RTX_TARGETS))
        if engine != "tensorrt_rtx" or options.targets != DEFAULT_TARGETS or not own:
            return options
        return replace(options, targets=tuple(dict.fromkeys((*options.targets, *own))))

    @property
    def engines(self) -> tuple[str, ...]:
        """TensorRT for RTX builds ahead of time; NVIDIA TensorRT is for where it runs, or later."""
        here = self.gpu is not None and is_installed("tensorrt")
        return ("tensorrt_rtx", "tensorrt") if self.asked or here else ("tensorrt_rtx",)

    @property
    def takes_onnxruntime(self) -> bool:
        """Whether ONNX Runtime is tried on the GPU: where there is one, or for later."""
        return self.asked or (self.gpu is not None and self.device != CPU)


def choose_plans(model: OnnxModel, target: GpuTarget) -> tuple[Plan, ...]:
    """`PLANS`, those for GPUs, and `PRODUCT_PLANS` where they are worth their time.

    That is where at least half of the multiplications, and a quarter of a million weights, are
    those of MatMul and Gemm with constant weights: transformers, and not convolutional networks.
    """
    share, weights = weight_share(model)
    worth = share >= MIN_PRODUCT_SHARE and weights >= MIN_PRODUCT_WEIGHTS
    gpu = tuple(
        Plan(engine, _name_float(precision, target), graph)
        for engine in target.engines
        for precision, graph in _GPU_GRAPHS.items()
    )
    return (*PLANS, *_choose_cuda(model, target), *gpu, *(PRODUCT_PLANS if worth else ()))


def _choose_cuda(model: OnnxModel, target: GpuTarget) -> tuple[Plan, ...]:
    if not target.takes_onnxruntime:
        return ()
    nodes = read_model(model.path, weights=False).graph.node
    convolves = any(node.op_type == "Conv" for node in nodes)
    plans = (*CUDA_PLANS, *(CUDA_CONV_PLANS if convolves else ()))
    return tuple(replace(plan, precision=_name_float(plan.precision, target)) for plan in plans)


def _name_float(precision: str, target: GpuTarget) -> str:
    return "fp32" if precision == "tf32" and not target.options.tf32 else precision
