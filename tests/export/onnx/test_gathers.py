"""Values gathered by places that are fewer than the values: the boxes of the best scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploy.engines import EngineSpec
from deploy.engines.process import EngineProcess
from export.capture.program import capture
from export.onnx.exporter import to_onnx

Pick = Callable[[Tensor, Tensor], Tensor]

PICKS: dict[str, tuple[int, Pick]] = {
    "fewer columns": (1, lambda z, best: z.gather(1, best.expand(-1, -1, 4))),
    "sliced": (1, lambda z, best: z[..., :4].gather(1, best.expand(-1, -1, 4))),
    "all but the last": (1, lambda z, best: z[..., :-1].gather(1, best.expand(-1, -1, 6))),
    "from the middle": (1, lambda z, best: z[..., 1:5].gather(1, best.expand(-1, -1, 4))),
    "fewer rows and columns": (
        2,
        lambda z, best: z[:, :18, :4].gather(1, best.clamp(max=17).expand(-1, -1, 3)),
    ),
    "along the last": (1, lambda z, best: z[..., :3].gather(2, best.expand(-1, -1, 2) % 3)),
    "a slice of all": (0, lambda z, best: z[..., :9].gather(1, best.expand(-1, -1, 7))),
    "all": (0, lambda z, best: z.gather(1, best.expand(-1, -1, 7))),
}
"""With how many slices the exported model has."""


class Best(nn.Module):
    """What `pick` makes of the places of the five best rows."""

    def __init__(self, pick: Pick) -> None:
        super().__init__()
        self.layer, self.pick = nn.Linear(7, 7), pick

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return self.pick(z, z[..., 4].topk(5, 1).indices.unsqueeze(-1))


@pytest.mark.parametrize("name", PICKS)
def test_engines_answer_as_torch_does(name: str, tmp_path: Path) -> None:
    """OpenVINO 2026.4 refuses fewer places, and drops slices that would make them as many."""
    torch.manual_seed(0)
    slices, pick = PICKS[name]
    module, path = Best(pick).eval(), tmp_path / "model.onnx"
    program = capture(module, {"x": torch.randn(2, 20, 7)}, keyword=False, dynamic_batch=True)
    to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Slice") >= slices
    for engine in ("onnxruntime", "openvino"):
        with EngineProcess(EngineSpec(engine, "fp32", str(path), threads=1)) as process:
            for batch in (1, 3):
                x = torch.randn(batch, 20, 7)
                with torch.no_grad():
                    expected = module(x).numpy()
                np.testing.assert_allclose(process({"x": x.numpy()})["y"], expected, atol=1e-6)
