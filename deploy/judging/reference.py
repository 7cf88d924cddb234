"""The reference of every judgement: the user's eager model, and what it loses in float32 itself."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from deploy.engines.base import Array, Feeds
from deploy.inputs.dataset import is_float
from deploy.judging.output_parity import decibels, same_nonfinite
from export.artifacts import BATCH
from export.capture.agreement import float_dtypes
from export.capture.arrays import to_tensor
from export.capture.float64 import copy_in_float64, run_in_float64
from export.capture.signature import CallSignature

Outputs = dict[str, Array]

_RERUN_ROWS = 8
_ROUNDING_DB = 60.0
"""A rerun with a smaller SQNR than this is another answer; rounding lies some 120 dB below."""


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
        self._step = _coarsest_step(module)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Eager's outputs."""
        return self._run(self._module, feeds)

    def floor(self, feeds: Feeds, eager: Outputs) -> tuple[Outputs, Outputs]:
        """The exact outputs, and eager's to hold against them as its noise.

        A single run may be lucky: every value of the second is that of the run which is farthest
        off, among eager as it is, eager with the batch permuted and another number of threads, and
        eager in channels_last. Where float64 cannot be run, eager stands for exact, and the reruns
        alone show its noise, which is at least a rounding of the format of its weights where that
        is coarser than float32; `floor_reason` then says why float64 could not. Large batches of a
        dynamic size are not run again, to save time.
        """
        exact, noisy = self._run_exactly(feeds), eager
        reruns: list[Outputs | None] = []
        if exact is None:
            exact, noisy = eager, self._run_permuted(feeds)
            noisy = {name: _step_away(exact[name], noisy[name], self._step) for name in eager}
        elif self._is_small(feeds):
            reruns.append(self._run_permuted(feeds))
        if self._is_small(feeds):
            reruns.append(self._run_channels_last(feeds))
        for rerun in reruns:
            if rerun is not None and is_same_answer(eager, rerun):
                noisy = {name: _farther(exact[name], noisy[name], rerun[name]) for name in eager}
        return exact, noisy

    def _is_small(self, feeds: Feeds) -> bool:
        """Whether a batch is worth more runs: small ones are among those that are checked."""
        dynamic = any(spec.has_dynamic_batch for spec in self._signature.inputs)
        return not dynamic or len(next(iter(feeds.values()))) <= _RERUN_ROWS

    def _run_exactly(self, feeds: Feeds) -> Outputs | None:
        """The outputs in float64; None where the model does not run so."""
        if self._double is None:
            return None
        double = {
            name: array.astype(np.float64) if is_float(array.dtype) else array
            for name, array in feeds.items()
        }
        wide = self._double
        try:
            return run_in_float64(lambda: self._run(wide, double))
        except Exception as error:  # noqa: BLE001  the user's code: any failure is the reason
            self._double = None
            self.floor_reason = _first_line(error)
            return None

    def _run_permuted(self, feeds: Feeds) -> Outputs:
        """Eager again, in another order of the samples and with another number of threads."""
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

    def _run_channels_last(self, feeds: Feeds) -> Outputs | None:
        """Eager again, with 4-D inputs in channels_last: other kernels, other sums.

        None where there are no such inputs, or where the model wants its own strides (``view``).
        """
        if all(array.ndim != 4 for array in feeds.values()):
            return None
        try:
            return self._run(self._module, feeds, channels_last=True)
        except Exception:  # noqa: BLE001  the user's code: it is not made for these strides
            return None

    def _run(
        self, module: nn.Module, feeds: Mapping[str, Array], *, channels_last: bool = False
    ) -> Outputs:
        return run_eager(module, self._signature, feeds, channels_last=channels_last)


def run_eager(
    module: nn.Module,
    signature: CallSignature,
    feeds: Mapping[str, Array],
    *,
    channels_last: bool = False,
) -> Outputs:
    """The outputs of `module` by name, for named arrays; 4-D ones in channels_last if asked."""
    tensors = {name: to_tensor(np.array(array)) for name, array in feeds.items()}
    if channels_last:
        tensors = {
            name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in tensors.items()
        }
    with torch.inference_mode():
        outputs = signature.call(module, tensors)
    return {name: to_numpy(value) for name, value in outputs.items()}


def is_same_answer(eager: Outputs, rerun: Outputs) -> bool:
    """Whether a rerun differs by rounding alone: a model may depend on the order of its batch."""
    for name, values in eager.items():
        if values.shape != rerun[name].shape or not same_nonfinite(values, rerun[name]):
            return False
        shared = np.isfinite(values)
        ours = values[shared].astype(np.float64)
        error = np.square(rerun[name][shared] - ours).sum()
        if decibels(float(np.square(ours).sum()), float(error)) < _ROUNDING_DB:
            return False
    return True


def _farther(exact: Array, first: Array, second: Array) -> Array:
    """Of two runs, value by value, the one that is farther from `exact`; of integers, that differs.

    Where all are infinite the distance is NaN, and the first is as good.
    """
    if exact.dtype.kind != "f":
        return np.where(first == exact, second, first)
    with np.errstate(invalid="ignore"):
        distances = [np.abs(run.astype(np.float64) - exact) for run in (first, second)]
    return np.where(np.less(*distances), second, first)


def _coarsest_step(module: nn.Module) -> float:
    """The relative rounding of the coarsest weights; 0 where none are coarser than float32."""
    steps = {torch.finfo(dtype).eps for dtype in float_dtypes(module)}
    return max((step for step in steps if step > torch.finfo(torch.float32).eps), default=0.0)


def _step_away(exact: Array, run: Array, step: float) -> Array:
    """`run`, where it is farther from `exact` than `step` of its largest value, else that far."""
    finite = np.isfinite(exact)
    if not step or exact.dtype.kind != "f" or not finite.any():
        return run
    away = exact + (step * np.abs(exact[finite]).max()).astype(exact.dtype)
    return _farther(exact, run, away)


def to_numpy(value: torch.Tensor) -> Array:
    """A tensor's values as an array of its own; bfloat16, which numpy lacks, as float32."""
    value = value.float() if value.dtype is torch.bfloat16 else value
    return value.detach().numpy().copy()


def _to_float64(module: nn.Module) -> tuple[nn.Module | None, str | None]:
    """A float64 copy, or None and the reason."""
    try:
        return copy_in_float64(module), None
    except Exception as error:  # noqa: BLE001  the user's code: any failure is the reason
        return None, _first_line(error)


def _first_line(error: Exception) -> str:
    """What went wrong, in one line; the error's name where it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
