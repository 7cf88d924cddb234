"""Pure tensor algebra of the rewrites; no graphs, no modules.

Batch normalization in inference is an affine map of each channel c:

    y_c = (x_c - mean_c) * s_c + beta_c,   s_c = gamma_c / sqrt(var_c + eps)

so after a linear map x = W u + b it is again one:

    W'_c = s_c W_c,   b'_c = (b_c - mean_c) s_c + beta_c

Everything is computed in float64, because variances near zero make s_c large.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchNorm:
    """The constants of a batch normalization in inference, each of shape ``(channels,)``.

    Attributes:
        mean: running mean.
        variance: running variance, biased or not as it was stored.
        gamma: scale; None is 1.
        beta: shift; None is 0.
        eps: added to the variance.
    """

    mean: Tensor
    variance: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.mean.numel()

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The map as ``y = x * scale + shift``, both float64 of shape ``(channels,)``."""
        if self.mean.is_meta:
            return self.mean.double(), self.mean.double()
        scale = torch.rsqrt(self.variance.detach().double() + self.eps)
        if self.gamma is not None:
            scale = scale * self.gamma.detach().double()
        shift = -self.mean.detach().double() * scale
        return scale, shift if self.beta is None else shift + self.beta.detach().double()


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, bn: BatchNorm, *, transposed: bool, groups: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that equals a convolution or linear layer and then `bn`.

    Args:
        weight: ``(out, in / groups, *kernel)``, or transposed ``(in, out / groups, *kernel)``;
            linear layers ``(out, in)``.
        bias: ``(out,)`` or None.
        bn: of ``out`` channels.
        transposed: the layout of a transposed convolution.
        groups: groups of the convolution.

    Returns:
        Weight of the same shape and bias ``(out,)``, both float64.

    Raises:
        ValueError: the layer's output channels are not those of `bn`.
    """
    channels = count_output_channels(weight, transposed=transposed, groups=groups)
    if channels != bn.channels:
        raise ValueError(f"the layer has {channels} output channels, the norm {bn.channels}")
    scale, shift = bn.scale_and_shift()
    wide = weight.detach().double()
    folded_bias = shift if bias is None else bias.detach().double() * scale + shift
    if not transposed:
        return wide * scale.reshape(-1, *[1] * (wide.ndim - 1)), folded_bias
    inputs, outputs = wide.shape[:2]
    grouped = wide.reshape(groups, inputs // groups, outputs, *wide.shape[2:])
    by_group = scale.reshape(groups, 1, outputs, *[1] * (wide.ndim - 2))
    return (grouped * by_group).reshape(wide.shape), folded_bias


def count_output_channels(weight: Tensor, *, transposed: bool, groups: int) -> int:
    """Output channels of a layer with this weight."""
    return int(weight.shape[1]) * groups if transposed else int(weight.shape[0])
