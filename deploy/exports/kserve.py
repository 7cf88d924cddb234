"""A bundle as an InferenceService of KServe.

Two runtimes. ``deploy`` is our own image as a custom predictor: KServe downloads the bundle that
``STORAGE_URI`` names to /mnt/models, and without one the image brings its own in /bundle.
``triton`` is KServe's Triton runtime, with a fixed tag, on a repository that
`deploy.exports.triton` wrote.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.bundle.folder import Bundle
from deploy.engines.device import is_for_gpu
from deploy.exports.choice import choose_engine
from deploy.exports.yaml_text import render_yaml
from export.errors import BundleError, ConfigError

Runtime = Literal["deploy", "triton"]

TRITON_TAG = "24.10-py3"
"""Triton 2.51; the exported configuration was read by a server of that version."""

_MARK = "# Written by deploy export-kserve"
_MODELS, _IN_IMAGE = "/mnt/models", "/bundle"
"""Where KServe puts what it downloads, and where an image of ours that brings a bundle has it."""

_PORT = 8080
_SERVE_FLAGS = f"--host 0.0.0.0 --port {_PORT} --grpc-port 0 --stop-timeout 20".split()
"""One port, since KServe routes to one; and done within the 30 s that Kubernetes waits."""

_MAX_NAME = 53
"""A label has 63 characters, and KServe adds ``-predictor``."""


@dataclass(frozen=True)
class KserveOptions:
    """What the bundle does not know.

    Attributes:
        image: of the runtime. ``deploy`` needs one; ``triton`` has that of the cluster, with
            `TRITON_TAG`.
        storage_uri: where the bundle is, or for ``triton`` the model repository: ``s3://``,
            ``gs://``, ``pvc://`` and so on. None: the image brings the bundle.
        name: of the service; None: that of the model file.
    """

    runtime: Runtime = "deploy"
    image: str | None = None
    storage_uri: str | None = None
    name: str | None = None


def export_kserve(bundle: Bundle, output: Path, options: KserveOptions) -> tuple[str, ...]:
    """Write the InferenceService of `bundle` to `output`, whole or not at all.

    Returns:
        Warnings.

    Raises:
        ConfigError: an option is missing or cannot be used.
        BundleError: something else stands at `output`, or Triton runs nothing of the bundle.
    """
    service, warnings = make_service(bundle, options)
    try:
        _refuse_other(output)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise BundleError(f"{output} cannot be read: {error}. Choose another --output.") from error
    built = f"{bundle.winner} of {bundle.manifest.model}, built {bundle.manifest.created}"
    head = re.sub(r"[^ -~]", "?", f"{_MARK}: {built}")
    _write_whole(output, f"{head}\n{render_yaml(service)}")
    return warnings


def make_service(bundle: Bundle, options: KserveOptions) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The InferenceService as plain values, and warnings.

    Raises:
        ConfigError: an option is missing or cannot be used.
    """
    predictor, warnings = _PREDICTORS[_check(options).runtime](bundle, options)
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _make_name(bundle, options.name)},
        "spec": {"predictor": predictor},
    }
    return service, warnings


def _predict_deploy(
    bundle: Bundle, options: KserveOptions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our container: KServe gives it the bundle, the port and the probes."""
    environment = [{"name": "PROTOCOL", "value": "v2"}]
    if options.storage_uri is not None:
        environment.append({"name": "STORAGE_URI", "value": options.storage_uri})
    container = {
        "name": "kserve-container",
        "image": options.image,
        "args": ["serve", _IN_IMAGE if options.storage_uri is None else _MODELS, *_SERVE_FLAGS],
        "env": environment,
        "ports": [{"containerPort": _PORT, "name": "http1", "protocol": "TCP"}],
        "resources": _resources(bundle, bundle.winner),
        "readinessProbe": _probe("/v2/health/ready"),
        "livenessProbe": _probe("/v2/health/live"),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        },
    }
    return {"containers": [container]}, ()


def _predict_triton(
    bundle: Bundle, options: KserveOptions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """KServe's Triton runtime on an exported repository."""
    choice = choose_engine(bundle)
    image = {"image": options.image} if options.image else {"runtimeVersion": TRITON_TAG}
    model = {
        "modelFormat": {"name": "tensorrt" if choice.backend == "tensorrt" else "onnx"},
        "runtime": "kserve-tritonserver",
        **image,
        "protocolVersion": "v2",
        "storageUri": options.storage_uri,
        "resources": _resources(bundle, choice.engine),
    }
    return {"model": model}, choice.warnings


_PREDICTORS = {"deploy": _predict_deploy, "triton": _predict_triton}


def _resources(bundle: Bundle, engine: str) -> dict[str, Any]:
    """The cores that the times of the report hold for, and a GPU where the engine needs one."""
    sizes = {"cpu": str(bundle.report()["measurement"]["threads"])}
    if is_for_gpu(bundle.manifest.engines[engine]):
        sizes["nvidia.com/gpu"] = "1"
    return {"requests": sizes, "limits": sizes}


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": _PORT}, "periodSeconds": 5, "timeoutSeconds": 2}


def _check(options: KserveOptions) -> KserveOptions:
    if options.runtime not in _PREDICTORS:
        known = " or ".join(_PREDICTORS)
        raise ConfigError(f"--runtime {options.runtime}: must be {known}.")
    if options.runtime == "deploy" and not options.image:
        raise ConfigError(
            "--runtime deploy needs --image: the container image that deploy serve is in."
        )
    if options.runtime == "triton" and not options.storage_uri:
        raise ConfigError(
            "--runtime triton needs --storage-uri: where the repository that deploy export-triton "
            "wrote was uploaded to."
        )
    uri = options.storage_uri
    if uri is not None and not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", uri):
        raise ConfigError(f"--storage-uri {uri!r}: must be a URI, such as s3://bucket/folder.")
    if options.image is not None and not re.fullmatch(r"\S+", options.image):
        raise ConfigError(f"--image {options.image!r}: must be the name of an image.")
    return options


def _make_name(bundle: Bundle, named: str | None) -> str:
    """A name that DNS takes: lower case, digits and dashes, a letter first."""
    if named is None:
        stem = (bundle.manifest.model.rpartition(".")[0] or bundle.manifest.model).lower()
        plain = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")
        return re.sub(r"^(?=[0-9]|$)", "model-", plain)[:_MAX_NAME].strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", named) or len(named) > _MAX_NAME:
        raise ConfigError(
            f"--name {named!r}: write lower-case letters, digits and '-', a letter first, "
            f"{_MAX_NAME} at most."
        )
    return named


def _refuse_other(output: Path) -> None:
    if output.is_dir():
        raise BundleError(f"{output} is a folder. Name a file in --output, such as isvc.yaml.")
    if output.exists() and not output.read_bytes().startswith(_MARK.encode()):
        raise BundleError(
            f"{output} exists and was not written by deploy export-kserve; it is left alone. "
            "Choose another --output."
        )


def _write_whole(output: Path, text: str) -> None:
    """Write beside `output` and rename, so that an interrupt leaves the old file."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise BundleError(
            f"{output} cannot be written: {error.strerror}. Choose another --output."
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(output)
    finally:
        Path(name).unlink(missing_ok=True)
