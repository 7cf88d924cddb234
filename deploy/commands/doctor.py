"""What this machine can run, and whether a bundle is sound on it. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.folder import read_bundle
from deploy.commands.verification import Verification, verify
from deploy.engines.onnxruntime_cuda import explain_no_provider
from deploy.engines.process import call_in_child
from deploy.measuring.machine import Machine, describe_machine
from export.errors import DeployError
from export.gpu import read_gpu
from export.optional import DISTRIBUTION, is_installed
from export.tensorrt.products import PRODUCTS

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
    """The machine, its engines and, if one was given, each engine of a bundle."""

    machine: Machine
    backends: tuple[Backend, ...]
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
    backends = tuple(_examine(*row, machine=machine) for row in _BACKENDS)
    if bundle is None:
        return Diagnosis(machine, backends)
    return Diagnosis(machine, backends, verify(read_bundle(bundle), trust=trust))


def _examine(module: str, package: str, extra: str, *, machine: Machine) -> Backend:
    if not is_installed(module):
        wanted = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {package}"
        return Backend(module, False, None, f"not installed: {wanted}")
    version = machine.versions.get(package)
    if module in PRODUCTS:
        return Backend(module, machine.gpu is not None, version, _describe_gpu(module, machine))
    if module == "openvino":
        try:
            native = call_in_child("deploy.engines.openvino:cpu_has_bf16")
        except DeployError as error:
            return Backend(module, False, version, str(error))
        return Backend(module, True, version, f"fp32, int8{', bf16' if native else ', no bf16'}")
    if module == "onnxruntime":
        version = version or machine.versions.get("onnxruntime-gpu")
        return Backend(module, True, version, f"fp32, int8{_describe_provider()}")
    return Backend(module, True, version, "the baseline")


def _describe_provider() -> str:
    """What ONNX Runtime does on the GPU of this machine; nothing where there is none."""
    gpu = read_gpu()
    if gpu is None:
        return ""
    obstacle = explain_no_provider(gpu)
    return "; tf32 and fp16 on the GPU" if obstacle is None else f"; not on the GPU: {obstacle}"


def _describe_gpu(module: str, machine: Machine) -> str:
    """What an engine for GPUs does on this machine."""
    if machine.gpu is not None:
        return "builds and runs engines"
    if PRODUCTS[module].ahead_of_time:
        return "builds engines ahead of time; running them needs an NVIDIA GPU"
    return "builds and runs engines where there is an NVIDIA GPU"
