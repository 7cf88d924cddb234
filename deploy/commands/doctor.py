"""What this machine can run, and whether a bundle is sound on it. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.folder import read_bundle
from deploy.commands.verification import Verification, verify
from deploy.engines.onnxruntime_cuda import explain_no_provider
from deploy.engines.process import call_in_child
from deploy.measuring.machine import Machine, describe_machine
from export.errors import DeployError
from export.gpu import GpuFacts, read_gpu
from export.optional import DISTRIBUTION, SERVE_MODULES, is_installed
from export.tensorrt.options import RTX_TARGETS
from export.tensorrt.products import PRODUCTS, Product

_BACKENDS = (
    ("torch", "torch", "build"),
    ("onnxruntime", "onnxruntime", ""),
    ("openvino", "openvino", "openvino"),
    ("tensorrt", "tensorrt", "trt"),
    ("tensorrt_rtx", "tensorrt-rtx", "rtx"),
)


@dataclass(frozen=True)
class Backend:
    """One engine on this machine: usable, or why not and what would help."""

    name: str
    usable: bool
    version: str | None
    note: str


@dataclass(frozen=True)
class Diagnosis:
    """The machine, its engines and, if one was given, each engine of a bundle.

    Attributes:
        serving: what `deploy serve` speaks here, or what it lacks.
    """

    machine: Machine
    backends: tuple[Backend, ...]
    serving: str
    bundle: tuple[Verification, ...] = ()

    @property
    def sound(self) -> bool:
        """Every engine of the bundle that was opened repeats its recorded answers here."""
        return all(verification.holds for verification in self.bundle)


def diagnose(bundle: Path | None = None, *, trust: tuple[str, ...] = ()) -> Diagnosis:
    """Look at this machine, and replay the golden inputs of `bundle` on it.

    Raises:
        BundleError: the bundle is missing, incomplete or changed.
    """
    machine = describe_machine()
    gpu = read_gpu()
    backends = tuple(_examine(*row, machine=machine, gpu=gpu) for row in _BACKENDS)
    found = () if bundle is None else verify(read_bundle(bundle), trust=trust)
    return Diagnosis(machine, backends, _describe_serving(), found)


def _examine(
    module: str, package: str, extra: str, *, machine: Machine, gpu: GpuFacts | None
) -> Backend:
    if not is_installed(module):
        wanted = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {package}"
        return Backend(module, False, None, f"not installed: {wanted}")
    version = machine.versions.get(package)
    if module in PRODUCTS:
        usable, note = _describe_product(PRODUCTS[module], gpu)
        return Backend(module, usable, version, note)
    if module == "openvino":
        try:
            native = call_in_child("deploy.engines.openvino:cpu_has_bf16")
        except DeployError as error:
            return Backend(module, False, version, str(error))
        return Backend(module, True, version, f"fp32, int8{', bf16' if native else ', no bf16'}")
    if module == "onnxruntime":
        other = machine.versions.get("onnxruntime-gpu")
        note = f"fp32, int8{_describe_provider(gpu)}"
        if version and other:
            note += (
                f"; onnxruntime-gpu {other} is installed as well, and one has overwritten files of "
                "the other: uninstall both, then install one"
            )
        return Backend(module, True, version or other, note)
    return Backend(module, True, version, "the baseline")


def _describe_provider(gpu: GpuFacts | None) -> str:
    """What ONNX Runtime does on the GPU of this machine; nothing where there is none."""
    if gpu is None:
        return ""
    obstacle = explain_no_provider(gpu)
    return "; tf32 and fp16 on the GPU" if obstacle is None else f"; not on the GPU: {obstacle}"


def _describe_product(product: Product, gpu: GpuFacts | None) -> tuple[bool, str]:
    """Whether a TensorRT runs engines on this machine, and what it does here."""
    if gpu is None and product.ahead_of_time:
        return False, "builds engines ahead of time; running them needs an NVIDIA GPU"
    if gpu is None:
        return False, "builds and runs engines where there is an NVIDIA GPU"
    if product.ahead_of_time and gpu.target not in RTX_TARGETS:
        return False, (
            f"builds engines ahead of time; runs none on the {gpu.name} ({gpu.target}), only on "
            f"{', '.join(RTX_TARGETS)}"
        )
    return True, "builds and runs engines"


def _describe_serving() -> str:
    missing = [module for module in SERVE_MODULES if not is_installed(module)]
    if missing:
        names = ", ".join(missing)
        return f"no, {names} not installed: pip install '{DISTRIBUTION}[serve]'"
    return "HTTP and gRPC"
