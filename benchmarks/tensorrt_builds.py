"""What an engine of TensorRT for RTX costs to build ahead of time, and how large it is.

    python benchmarks/tensorrt_builds.py [timm network ...] [--model model.onnx]

Needs no GPU. For each network (random weights, BN statistics of random images, merged, 224x224):
the graphs that a build makes in TF32, fp16, bf16 and int8, each built for SM80, SM89 and SM120
together, batch 1 to 16, in a process of its own. Seconds are those of the whole call, the process
included. Prints the table of docs/gpu.md.
"""

import argparse
import datetime
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/deploy alone would stand for deploy

from deploy.candidates.files import GpuTarget  # noqa: E402
from deploy.candidates.graphs import GraphSources, make_graph  # noqa: E402
from deploy.candidates.plans import choose_plans  # noqa: E402
from deploy.engines.process import call_in_child  # noqa: E402
from deploy.measuring.machine import describe_machine, usable_cores  # noqa: E402
from export.artifacts import OnnxModel  # noqa: E402
from export.capture.program import capture  # noqa: E402
from export.errors import DeployError  # noqa: E402
from export.fusion import fuse  # noqa: E402
from export.onnx.exporter import to_onnx  # noqa: E402
from export.onnx.files import read_model  # noqa: E402
from export.tensorrt.contract import find_stray_float  # noqa: E402
from quantize.calibration.calibrate import calibrate  # noqa: E402

NETWORKS = (
    "resnet50",
    "mobilenetv2_100",
    "repvgg_a0",
    "vit_small_patch16_224",
    "efficientnet_b0",
)
SHAPE = (3, 224, 224)
SEED = 0


def main() -> None:
    """One row a network and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--demo", action="store_true", help="the network of examples/digits too")
    given = parser.parse_args()
    machine = describe_machine()
    print(
        f"{usable_cores()} cores of {machine.cpu}, no GPU needed, tensorrt-rtx "
        f"{version('tensorrt-rtx')}, torch {version('torch')}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n"
    )
    print("| network | precision | seconds | size, MB | ONNX, MB | stray float32 |")
    print("|---|---|---|---|---|---|")
    for name in given.networks or NETWORKS:
        measure_network(name, make_network(name), SHAPE)
    if given.demo or not given.networks:
        sys.path.insert(0, str(ROOT / "examples" / "digits"))
        from repvgg_digits import RepVGGDigits

        torch.manual_seed(SEED)
        measure_network("digits", RepVGGDigits().eval(), (1, 32, 32))


def make_network(name: str) -> nn.Module:
    """Of timm, with batch norms that are far from the identity."""
    import timm_zoo  # declares what timm's import needs beside a torch for CPUs
    from nets import randomize_norms

    torch.manual_seed(SEED)
    return randomize_norms(timm_zoo.timm.create_model(name)).eval()


def measure_network(name: str, net: nn.Module, shape: tuple[int, ...]) -> None:
    """Build every precision and print its row."""
    with tempfile.TemporaryDirectory() as folder:
        stage, scratch = Path(folder) / "stage", Path(folder) / "scratch"
        stage.mkdir(), scratch.mkdir()
        x = torch.randn(2, *shape)
        program = fuse(net, x).program or capture(net, {"x": x}, keyword=False, dynamic_batch=True)
        path = stage / "model.onnx"
        model = to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
        batches = [{"x": torch.randn(2, *shape).numpy()} for _ in range(4)]
        ranges = calibrate(model, batches, observer="minmax")
        sources = GraphSources(model, ranges, stage, scratch, samples=tuple(batches[:1]))
        for plan in choose_plans(model, GpuTarget()):
            if plan.engine == "tensorrt_rtx":
                graph = make_graph(plan.graph, sources)
                print(f"| {name} | {plan.precision} | {describe_build(graph, folder)} |")


def describe_build(graph: OnnxModel | DeployError, folder: str) -> str:
    """Seconds, sizes and what stays in float32 between int8 layers; or why there is no engine."""
    if isinstance(graph, DeployError):
        return f"{graph} | | |"
    started = time.perf_counter()
    path = Path(folder) / "model.engine"
    try:
        built = call_in_child("export.tensorrt:build_engine", model=graph, path=path)
    except DeployError as error:
        return f"{error} | | |"
    seconds = time.perf_counter() - started
    parts = graph.path.parent.glob(f"{graph.path.name}*")
    onnx_size = sum(part.stat().st_size for part in parts)
    stray = len(find_stray_float(read_model(graph.path, weights=False)))
    size = built.path.stat().st_size
    return f"{seconds:.1f} | {size / 1e6:.1f} | {onnx_size / 1e6:.1f} | {stray}"


if __name__ == "__main__":
    main()
