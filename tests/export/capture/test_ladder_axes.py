"""A range that holds sizes which the model does not take is found, whatever sizes are tried."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.artifacts import SizeRange, TensorSpec
from export.capture.ladder import Exported, export_model
from export.capture.signature import describe_call
from export.errors import DeployError, ExportError, InputError

SIZES = SizeRange(63, 119, 315)
"""Its ends, its best size and the odd size that is tried are all multiples of 7."""


class Windows(nn.Module):
    """Means over windows of 7 rows."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return x.view(batch, channels, height // 7, 7, width).amax(3).mean((2, 3))


class Padded(nn.Module):
    """Takes any height, but by another way where it is no multiple of 7."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 7:
            x = nn.functional.pad(x, (0, 0, 0, 7 - x.shape[2] % 7), value=3.0)
        return nn.functional.max_pool2d(x, 7).mean((2, 3))


def climb(net: nn.Module, workdir: Path, sizes: SizeRange = SIZES) -> Exported:
    feeds = {"x": torch.randn(2, 3, sizes.best, 14, generator=torch.Generator().manual_seed(0))}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    ranged = TensorSpec("x", ("batch", 3, "height", 14), "float32", {"height": sizes})
    return export_model(
        net,
        feeds,
        workdir,
        signature=replace(signature, inputs=(ranged,)),
        static_batch=False,
        opset=20,
    )


def test_sizes_that_the_model_fails_at_are_named_with_the_step_that_it_takes(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="LEAST:BEST:MOST/7") as caught:
        climb(Windows(), tmp_path)
    assert "The model itself fails at height=120" in str(caught.value)


def test_a_file_that_knows_one_way_of_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        climb(Padded(), tmp_path)
    assert "torchscript: The exported model is wrong" in str(caught.value)
    assert "height=120" in str(caught.value)


@pytest.mark.parametrize("net", [Windows(), Padded()])
def test_with_the_right_step_the_first_rung_holds(tmp_path: Path, net: nn.Module) -> None:
    try:
        exported = climb(net, tmp_path, SizeRange(63, 119, 315, 7))
    except DeployError as error:
        pytest.fail(str(error))
    assert exported.rung == "dynamo"
