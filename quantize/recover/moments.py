"""What recovery needs to know of a layer's input: means and second moments of its patches.

A layer is linear in its patches, so these tell the mean and the power of any error of its output,
for any rounding of its weights, without running it again (Nagel et al. 2020, equation 13).
"""

import numpy as np

from quantize.recover.patches import PatchLayout

LEAST_SHRINKAGE = 0.01
_FLOOR = 1e-6


class PatchMoments:
    """Accumulates patches [groups, taps, positions] of one layer, float and quantized.

    Args:
        layout: of the layer.
        second: whether second moments are kept, ``4 * groups * taps**2`` bytes.
    """

    def __init__(self, layout: PatchLayout, *, second: bool) -> None:
        groups, taps = layout.groups, layout.taps
        self.count = 0
        self._exact = np.zeros((groups, taps))
        self._quantized = np.zeros((groups, taps))
        self._second = np.zeros((groups, taps, taps), np.float32) if second else None
        self._origin: np.ndarray | None = None  # near the mean, so that float32 holds what is left

    def update(self, exact: np.ndarray, quantized: np.ndarray) -> None:
        """Take the patches of one batch, at the same positions before and after quantization.

        There may be none: what detection finds in a sample may be nothing.
        """
        if not quantized.shape[2]:
            return
        self.count += quantized.shape[2]
        self._exact += exact.sum(axis=2, dtype=np.float64)
        self._quantized += quantized.sum(axis=2, dtype=np.float64)
        if self._second is None:
            return
        if self._origin is None:
            self._origin = quantized.mean(axis=2, keepdims=True)
        shifted = quantized - self._origin
        self._second += shifted @ shifted.transpose(0, 2, 1)

    @property
    def exact_mean(self) -> np.ndarray:
        """[groups, taps], of the float input."""
        return self._exact / self.count

    @property
    def quantized_mean(self) -> np.ndarray:
        """[groups, taps], of the quantized input."""
        return self._quantized / self.count

    def take_second(self, *, centred: bool) -> np.ndarray:
        """Second moments of the quantized patches, [groups, taps, taps] float32; frees its own.

        Args:
            centred: about the mean, which is what is left to rounding where the bias takes up the
                mean error; otherwise about 0.

        The moments between taps are shrunk towards 0 by as much as they are uncertain: by
        ``taps / (taps + positions)``, at least 1 %. Of fewer patches than taps they would tell of
        directions without any error, and rounding would go astray in these.
        """
        assert self._second is not None
        assert self._origin is not None
        moments, self._second = self._second, None
        moments /= np.float32(self.count)
        mean = self.quantized_mean
        _add_product(moments, mean - self._origin[..., 0], -1)
        if not centred:
            _add_product(moments, mean, 1)
        taps = moments.shape[1]
        diagonal = np.maximum(np.einsum("gkk->gk", moments), 0)
        moments *= np.float32(1 - max(LEAST_SHRINKAGE, taps / (taps + self.count)))
        floor = diagonal.mean(axis=1, keepdims=True) * _FLOOR
        diagonal = np.maximum(diagonal, np.where(floor > 0, floor, 1))
        np.einsum("gkk->gk", moments)[...] = diagonal
        return moments


def _add_product(moments: np.ndarray, vector: np.ndarray, sign: int) -> None:
    """``moments += sign * vector vector'``, group by group."""
    short = vector.astype(np.float32)
    moments += np.float32(sign) * short[:, :, None] * short[:, None, :]
