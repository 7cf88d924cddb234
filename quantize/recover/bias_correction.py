"""Bias correction: the mean error that quantization adds to an output channel, taken off its bias.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.2; here with the means of calibration data in place of those of batch norms.
"""

import numpy as np

from quantize.recover.moments import PatchMoments


def mean_output_error(
    exact: np.ndarray, quantized: np.ndarray, moments: PatchMoments
) -> np.ndarray:
    """``E[W_q x_q] - E[W x]`` of every output channel, [groups * rows] float64.

    The layer stands alone: its float input comes from the float model, so the corrections of all
    layers can be made in any order.

    Args:
        exact: float weights W, [groups, rows, taps].
        quantized: W_q, the weights that the int8 layer multiplies with.
        moments: of its patches; x is the float input, x_q the quantized one.
    """
    after = np.einsum("grk,gk->gr", quantized.astype(np.float64), moments.quantized_mean)
    before = np.einsum("grk,gk->gr", exact.astype(np.float64), moments.exact_mean)
    error: np.ndarray = (after - before).reshape(-1)
    return error
