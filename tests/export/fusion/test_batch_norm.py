import pytest
import torch
from torch.nn import functional as F

from export.fusion.batch_norm import BatchNorm, fold_batch_norm


def make_norm(channels: int, *, affine: bool = True, seed: int = 0) -> BatchNorm:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(channels, generator=generator, dtype=torch.float64)  # noqa: E731
    gamma = draw()
    gamma[0] = 1e-4
    return BatchNorm(
        mean=draw() * 5,
        variance=draw().abs() * 3 + 1e-3,
        gamma=gamma if affine else None,
        beta=draw() if affine else None,
        eps=1e-5,
    )


def apply_norm(bn: BatchNorm, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, bn.mean, bn.variance, bn.gamma, bn.beta, False, 0.0, bn.eps)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_folded_convolution_equals_convolution_then_norm(groups, with_bias, affine):
    torch.manual_seed(1)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    weight = torch.randn(12, 6 // groups, 3, 3, dtype=torch.float64)
    bias = torch.randn(12, dtype=torch.float64) if with_bias else None
    bn = make_norm(12, affine=affine)
    folded = fold_batch_norm(weight, bias, bn, transposed=False, groups=groups)
    expected = apply_norm(bn, F.conv2d(x, weight, bias, padding=1, groups=groups))
    torch.testing.assert_close(
        F.conv2d(x, *folded, padding=1, groups=groups), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_folded_transposed_convolution_equals_the_pair(groups):
    torch.manual_seed(2)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    weight = torch.randn(6, 12 // groups, 3, 3, dtype=torch.float64)
    bn = make_norm(12)
    folded = fold_batch_norm(weight, None, bn, transposed=True, groups=groups)
    expected = apply_norm(bn, F.conv_transpose2d(x, weight, stride=2, groups=groups))
    torch.testing.assert_close(
        F.conv_transpose2d(x, *folded, stride=2, groups=groups), expected, rtol=1e-12, atol=1e-12
    )


def test_folding_is_done_in_float64():
    weight, bias = fold_batch_norm(torch.ones(2, 2), None, make_norm(2), transposed=False, groups=1)
    assert weight.dtype == bias.dtype == torch.float64


def test_other_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="4 output channels, the norm 3"):
        fold_batch_norm(torch.ones(4, 2), None, make_norm(3), transposed=False, groups=1)
