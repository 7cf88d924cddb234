"""Triton's server with its python backend, out of the nvidia-pytriton wheel.

python run_triton.py PORT MODEL.onnx
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import onnxruntime
import pytriton

HERE = Path(__file__).parent


def write_repository(folder: Path, model: str) -> Path:
    """A repository of one model, echo."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    repository = folder / "repository"
    (repository / "echo" / "1").mkdir(parents=True)
    shutil.copy(HERE / "triton_model.py", repository / "echo" / "1" / "model.py")
    shutil.copy(HERE / "session.py", repository / "echo" / "1" / "session.py")
    x, y = session.get_inputs()[0].shape, session.get_outputs()[0].shape
    (repository / "echo" / "config.pbtxt").write_text(
        'name: "echo"\nbackend: "python"\nmax_batch_size: 8\n'
        f"input [{{ name: 'x' data_type: TYPE_FP32 dims: {x[1:]} }}]\n"
        f"output [{{ name: 'y' data_type: TYPE_FP32 dims: {y[1:]} }}]\n"
        "instance_group [{ kind: KIND_CPU count: 1 }]\n"
        f"parameters {{ key: 'file' value: {{ string_value: '{model}' }} }}\n"
    )
    return repository


def copy_backend(folder: Path) -> Path:
    """The python backend with the stub of this interpreter's version."""
    root = Path(pytriton.__file__).parent / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(root / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    return backends


def main(port: int, model: str) -> None:
    """Become Triton."""
    folder = Path(tempfile.mkdtemp(prefix="triton-"))
    root = Path(pytriton.__file__).parent
    library = sysconfig.get_config_var("LIBDIR")
    binaries = [str(Path(sys.executable).parent), os.environ["PATH"]]
    os.environ["PATH"] = os.pathsep.join(binaries)  # where the backend looks for packages
    libraries = [str(root.parent / "nvidia_pytriton.libs"), library]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    server = str(root / "tritonserver" / "bin" / "tritonserver")
    flags = {
        "model-repository": write_repository(folder, model),
        "backend-directory": copy_backend(folder),
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "log-info": "false",
    }
    os.execv(server, [server, *(f"--{key}={value}" for key, value in flags.items())])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
