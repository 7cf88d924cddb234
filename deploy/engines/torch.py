"""Eager PyTorch: the baseline that every candidate must beat, and the engine when none does."""

from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.base import Array, BackendEngine, EngineSpec, Feeds
from deploy.engines.device import CUDA, explain_no_cuda
from export.errors import EngineError
from export.optional import require


class TorchEngine(BackendEngine):
    """The user's module as it is, in eval and inference mode: on the CPU, or on the GPU.

    On the GPU torch's own settings hold (TF32 in convolutions), and a call takes the copies to it
    and back.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._torch = require("torch", extra="build")
        from deploy.loading.model_files import load_model
        from export.capture.arrays import to_tensor
        from export.capture.signature import CallSignature

        self._view = to_tensor
        self._torch.set_num_threads(spec.threads)
        loaded = load_model(Path(spec.path), trust=spec.trust, factory=spec.factory)
        self._device = self._choose_device(spec)
        module = loaded.module
        if spec.images is not None:
            from export.capture.image_model import ImageModel

            module = ImageModel(module, spec.images, [item.name for item in spec.inputs])
        self._module = self._move(module)
        held = (*self._module.parameters(), *self._module.buffers())
        self._held = frozenset(_address(tensor) for tensor in held)
        self._changes_inputs: bool | None = None
        self._signature = CallSignature(spec.inputs, spec.outputs, spec.keyword, "")
        self.inputs = spec.inputs
        self.outputs = spec.outputs

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        if self._device is not None:
            return self._run_on_device(feeds)
        tensors = {name: self._to_tensor(array) for name, array in feeds.items()}
        with self._torch.inference_mode():
            try:
                outputs = self._signature.call(self._module, tensors)
            except Exception as error:  # the user's own code: whatever it raises is the finding
                raise EngineError(
                    f"The model fails on this input: {type(error).__name__}: {error}"
                ) from error
        self._changes_inputs = any(tensor._version for tensor in tensors.values())
        shared = self._held | {_address(tensor) for tensor in tensors.values()}
        return {name: _to_array(value, shared) for name, value in outputs.items()}

    def _run_on_device(self, feeds: Feeds) -> dict[str, Array]:
        """Errors of a kernel come late, so the GPU is waited for where they can be told.

        The copies to the GPU are the model's to write to.
        """
        torch = self._torch
        here = {
            name: self._view(array if array.flags.writeable else array.copy())
            for name, array in feeds.items()
        }
        try:
            with torch.inference_mode():
                there = {name: tensor.to(self._device) for name, tensor in here.items()}
                outputs = self._signature.call(self._module, there)
                arrays = {
                    name: _to_array(value.cpu(), frozenset()) for name, value in outputs.items()
                }
            torch.cuda.synchronize()
        except Exception as error:  # the user's own code: whatever it raises is the finding
            raise EngineError(
                f"The model fails on this input on the GPU: {type(error).__name__}: {error}"
            ) from error
        return arrays

    def _choose_device(self, spec: EngineSpec) -> str | None:
        """None is the CPU."""
        if spec.variant != CUDA:
            return None
        obstacle = explain_no_cuda(self._torch)
        if obstacle is not None:
            raise EngineError(
                f"{Path(spec.path).name} was to run as eager torch on an NVIDIA GPU: {obstacle}"
            )
        return CUDA

    def _move(self, module: Any) -> Any:
        if self._device is None:
            return module
        try:
            return module.to(self._device)
        except RuntimeError as error:  # no memory is left there, or it cannot be moved at all
            raise EngineError(f"The model cannot be moved to the GPU: {error}") from error

    def _to_tensor(self, array: Array) -> Any:
        """A tensor over the caller's memory, or over a copy for a model that writes to its inputs.

        Whether it does (``nn.ReLU(inplace=True)`` first) is known after the first call.
        """
        if self._changes_inputs is False and array.flags.writeable and array.flags.c_contiguous:
            return self._view(array)
        return self._view(array.copy())

    def _release(self) -> None:
        del self._module


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _to_array(value: Any, shared: frozenset[int]) -> Array:
    """The values in memory of the caller's own; bfloat16, which numpy lacks, as float32."""
    plain = (value.float() if str(value.dtype) == "torch.bfloat16" else value).detach()
    array: Array = np.asarray(plain)
    return array.copy() if _address(plain) in shared else array
