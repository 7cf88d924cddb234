"""The reference of every judgement: the user's eager model, and what it loses in float32 itself."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from deploy.engines.base import Array, Feeds
from export.artifacts import BATCH
from export.copying import deep_copy
from export.signature import CallSignature

Outputs = dict[str, Array]


class Reference:
    """Runs the eager model on named arrays, in float32 and for the noise floor in float64.

    Args:
        module: in eval mode; it is not changed.
        signature: of its call.
        threads: intra-op threads of this process.
    """

    def __init__(self, module: nn.Module, signature: CallSignature, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._module = module
        self._signature = signature
        self.outputs = signature.outputs
        self._threads = threads
        self._double, self.floor_reason = _to_float64(module)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Eager's outputs."""
        return self._run(self._module, feeds)

    def floor(self, feeds: Feeds, eager: Outputs) -> tuple[Outputs, Outputs]:
        """The exact outputs, and eager's to hold against them as its noise.

        Where float64 cannot be run, eager stands for exact, and a rerun with the batch permuted and
        another number of threads shows its noise; `floor_reason` then says why.
        """
        if self._double is not None:
            double = {
                name: array.astype(np.float64) if array.dtype.kind == "f" else array
                for name, array in feeds.items()
            }
            try:
                return self._run(self._double, double), eager
            except Exception as error:  # noqa: BLE001  the user's code: any failure is the reason
                self._double = None
                self.floor_reason = _first_line(error)
        return eager, self._rerun(feeds)

    def _rerun(self, feeds: Feeds) -> Outputs:
        rows = len(next(iter(feeds.values())))
        order = np.random.default_rng(0).permutation(rows)
        back = np.argsort(order)
        torch.set_num_threads(1 if self._threads > 1 else 2)
        try:
            outputs = self._run(self._module, {n: array[order] for n, array in feeds.items()})
        finally:
            torch.set_num_threads(self._threads)
        dynamic = any(spec.has_dynamic_batch for spec in self._signature.inputs)
        for spec in self.outputs:
            axes = [axis for axis, size in enumerate(spec.shape) if size == BATCH]
            if not dynamic:
                axes = [axis for axis, size in enumerate(spec.shape) if size == rows][:1]
            for axis in axes:
                outputs[spec.name] = np.take(outputs[spec.name], back, axis)
        return outputs

    def _run(self, module: nn.Module, feeds: Mapping[str, Array]) -> Outputs:
        return run_eager(module, self._signature, feeds)


def run_eager(module: nn.Module, signature: CallSignature, feeds: Feeds) -> Outputs:
    """The outputs of `module` by name, for named arrays."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    with torch.inference_mode():
        outputs = signature.call(module, tensors)
    return {name: to_numpy(value) for name, value in outputs.items()}


def to_numpy(value: torch.Tensor) -> Array:
    """A tensor's values as an array of its own; bfloat16, which numpy lacks, as float32."""
    value = value.float() if value.dtype is torch.bfloat16 else value
    return value.detach().numpy().copy()


def _to_float64(module: nn.Module) -> tuple[nn.Module | None, str | None]:
    """A float64 copy, or None and the reason."""
    try:
        return deep_copy(module).double(), None
    except Exception as error:  # noqa: BLE001  the user's code: any failure is the reason
        return None, _first_line(error)


def _first_line(error: Exception) -> str:
    """What went wrong, in one line; the error's name where it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
