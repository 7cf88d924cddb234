"""Does an engine built ahead of time fit this machine? Asked before a byte of it is deserialized.

An engine is native code for certain GPUs and one version of its library, and a library that is
given another's may end the process. So what its record says is held against the machine first, by
the driver's tool and the metadata of packages: CUDA is not loaded, and the library not imported.
"""

import importlib.metadata
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.manifest import hash_file
from export.gpu import GpuFacts, read_gpu
from export.optional import DISTRIBUTION
from export.tensorrt.products import PRODUCTS, Product
from export.tensorrt.record import EngineRecord

VERSION_COMPATIBLE = "VERSION_COMPATIBLE"
HARDWARE_COMPATIBLE = "AMPERE_PLUS"
"""As a flag of a record: any GPU from Ampere (8.0) up may run it."""

_LIBRARY = re.compile(r"\.(so(\.\d+)*|dll|dylib)$")
_CUDA_SUFFIX = re.compile(r"_cu(\d+)(_libs)?$")
_REBUILD = "Build it again here, from the ONNX file beside it"
_NO_ENGINE = "Serve it with another engine of its bundle"


@dataclass(frozen=True)
class InstalledProduct:
    """NVIDIA TensorRT or TensorRT for RTX, as it is installed.

    Attributes:
        version: of the package.
        cuda: major version of CUDA that its libraries are made for; None: the package does not say.
    """

    version: str
    cuda: int | None = None


@dataclass(frozen=True)
class Host:
    """What of a machine decides whether an engine runs on it.

    Attributes:
        gpu: its first GPU; None: there is none, or no working driver.
        products: by module.
        system: operating system and processor, such as ``linux-x86_64``.
    """

    gpu: GpuFacts | None
    products: Mapping[str, InstalledProduct]
    system: str


def read_host() -> Host:
    """This machine."""
    found = {module: _find_product(product) for module, product in PRODUCTS.items()}
    return Host(
        gpu=read_gpu(),
        products={module: product for module, product in found.items() if product is not None},
        system=f"{platform.system().lower()}-{platform.machine().lower()}",
    )


def explain_mismatch(
    record: EngineRecord | None, file: Path, host: Host, *, digest: str | None = None
) -> str | None:
    """One sentence on what keeps the engine `file` from running on `host`, and what to do.

    Args:
        record: what the engine was built with; None: nobody knows.
        file: the engine; plugin libraries lie beside it.
        digest: SHA-256 of the engine where it was read already; None: the file is hashed.

    Returns:
        None where all that can be told beforehand agrees.
    """
    if host.gpu is None:
        return (
            f"no NVIDIA GPU was found here (nvidia-smi shows none), and {file.name} needs one. "
            f"{_NO_ENGINE}."
        )
    if record is None:
        return (
            f"{file.name} does not say what it was built for, and is not opened on trust. Build "
            "its bundle again."
        )
    case = _Case(record, PRODUCTS.get(record.product), file, host, host.gpu)
    for check in CHECKS:
        sentence = check(case)
        if sentence is not None:
            return sentence
    return _check_bytes(case, digest)


@dataclass(frozen=True)
class _Case:
    """One engine on one machine."""

    record: EngineRecord
    product: Product | None
    file: Path
    host: Host
    gpu: GpuFacts

    @property
    def title(self) -> str:
        return self.product.title if self.product else self.record.product


def _check_product(case: _Case) -> str | None:
    record, product = case.record, case.product
    if product is None:
        return f"{case.file.name} is of {record.product!r}, which this version does not run."
    installed = case.host.products.get(product.module)
    package = product.module.replace("_", "-")
    if installed is None:
        return (
            f"{case.file.name} needs {case.title} {record.version}, which is not installed: "
            f"pip install '{DISTRIBUTION}[{product.extra}]' {package}=={record.version}"
        )
    if _runs_on(installed.version, record):
        return None
    may = " or a later one of that major version" if VERSION_COMPATIBLE in record.flags else ""
    return (
        f"{case.file.name} was built with {case.title} {record.version}, and {installed.version} "
        f"is installed. {_REBUILD}, or install {package}=={record.version}{may}."
    )


def _runs_on(installed: str, record: EngineRecord) -> bool:
    """An engine runs on its own version; a version-compatible one on later ones of its major."""
    if VERSION_COMPATIBLE not in record.flags:
        return installed == record.version
    here, built = _numbers(installed), _numbers(record.version)
    return here[:1] == built[:1] and here >= built


def _check_system(case: _Case) -> str | None:
    built = case.record.system
    if built is None or built == case.host.system:
        return None
    return (
        f"{case.file.name} was built for {built}, and this machine is {case.host.system}. "
        f"{_REBUILD}."
    )


def _check_cuda(case: _Case) -> str | None:
    """A driver runs what was made for its own major version of CUDA or an earlier one."""
    offered = case.gpu.cuda
    if offered is None:
        return None
    installed = case.host.products.get(case.record.product)
    needs = [installed.cuda] if installed is not None and installed.cuda is not None else []
    if case.record.cuda is not None:
        needs += _numbers(case.record.cuda)[:1]
    if not needs or _numbers(offered)[0] >= max(needs):
        return None
    return (
        f"{case.file.name} needs CUDA {max(needs)}, and the NVIDIA driver {case.gpu.driver} of "
        f"this machine offers {offered}. Install a later driver."
    )


def _check_gpu(case: _Case) -> str | None:
    record, gpu = case.record, case.gpu
    if HARDWARE_COMPATIBLE in record.flags:
        if _numbers(gpu.capability) >= (8, 0):
            return None
        return (
            f"{case.file.name} was built for GPUs from compute capability 8.0 up, and {gpu.name} "
            f"has {gpu.capability}. {_REBUILD}."
        )
    if gpu.target not in record.targets:
        return (
            f"{case.file.name} was built for {', '.join(record.targets) or 'no GPU'}, and "
            f"{gpu.name} is {gpu.target}. {_REBUILD}."
        )
    ahead = case.product is not None and case.product.ahead_of_time
    if ahead or record.gpu is None or record.gpu == gpu.name:
        return None
    return (
        f"{case.file.name} was built on {record.gpu}, and this is {gpu.name}: {case.title} has "
        f"chosen its kernels for the one that it was built on. {_REBUILD}."
    )


def _check_plugins(case: _Case) -> str | None:
    folder, wanted = case.file.parent, case.record.plugins
    for name, digest in wanted.items():
        library = folder / name
        if Path(name).name != name or not library.is_file():
            return (
                f"{case.file.name} needs the plugin library {name!r}, which is not beside it. "
                "Copy or build its bundle again."
            )
        if hash_file(library) != digest:
            return (
                f"The plugin library {name} is not the one that {case.file.name} was built with "
                "(its SHA-256 differs). Copy or build its bundle again."
            )
    libraries = {entry.name for entry in folder.iterdir() if _LIBRARY.search(entry.name)}
    extra = sorted(libraries - set(wanted))
    if not extra:
        return None
    return (
        f"Beside {case.file.name} lies the plugin library {extra[0]}, which it was not built with. "
        "Remove it, or build its bundle again."
    )


def _check_bytes(case: _Case, digest: str | None) -> str | None:
    if (digest or hash_file(case.file)) == case.record.engine_sha256:
        return None
    return (
        f"{case.file.name} was changed after it was built (its SHA-256 differs). {_REBUILD}, or "
        "copy its bundle again."
    )


CHECKS: tuple[Callable[[_Case], str | None], ...] = (
    _check_product,
    _check_system,
    _check_cuda,
    _check_gpu,
    _check_plugins,
)
"""In this order; the bytes themselves come last, since hashing takes longest."""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _find_product(product: Product) -> InstalledProduct | None:
    """By the metadata of its packages: what users install depends on one that names CUDA."""
    version, cuda = _version(product.module), None
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").replace("-", "_").lower()
        match = _CUDA_SUFFIX.search(name)
        if match and name.startswith(f"{product.module}_cu"):
            cuda = int(match.group(1))
            version = version or distribution.version
    return None if version is None else InstalledProduct(version, cuda)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
