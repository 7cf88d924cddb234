"""What calibration costs: wall time and peak memory on a ResNet-50 at 224x224.

    python benchmarks/calibration.py [SAMPLES]

All float tensors are observed in batches of 8, and the observer is `auto`, as a build has it; the
samples are random. Memory is the largest resident size of a process that does nothing else and
never sees torch. Prints a row of the table in docs/benchmarks.md.
"""

import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from deploy.measuring.machine import describe_machine, usable_cores
from export.artifacts import BATCH, OnnxModel, TensorSpec
from export.onnx.tensor_types import float_tensors
from quantize.calibration.calibrate import calibrate

SAMPLES, BATCH_SIZE = 512, 8
SHAPE = (3, 224, 224)
RESULT = "calibration.json"


def main() -> None:
    """Export, then calibrate in a process of its own."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(path)
        command = [sys.executable, str(Path(__file__).resolve()), str(samples), str(path)]
        subprocess.run(command, check=True)
        result = json.loads((Path(folder) / RESULT).read_text())
    machine = f"{usable_cores()} cores of {describe_machine().cpu}"
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    observers = ", ".join(f"{key} {count}" for key, count in result["chosen"].items())
    print(
        f"| {machine}, onnxruntime {version('onnxruntime')}, {date} | {samples} | "
        f"{result['seconds']:.0f} s | {result['peak_mib']:,.0f} MiB | {result['tensors']} of which "
        f"{result['quantizable']} with a histogram | {observers} |"
    )


def export(path: Path) -> None:
    """The ResNet-50 of this folder, batch norms folded."""
    import torch
    from resnet50 import make_net

    from export.fusion import fuse
    from export.onnx.exporter import to_onnx

    program = fuse(make_net(), torch.zeros(2, *SHAPE)).program
    to_onnx(program, path, input_names=["x"], output_names=["y"])


def measure(samples: int, path: Path) -> None:
    """Calibrate; leave what was found beside the model."""
    spec = TensorSpec("x", (BATCH, *SHAPE), "float32")
    model = OnnxModel(path, (spec,), (), 20)
    started = time.perf_counter()
    ranges = calibrate(
        model,
        make_batches(samples),
        observer="auto",
        tensors=float_tensors(path),
        total=samples,
        threads=usable_cores(),
    )
    seconds = time.perf_counter() - started
    names = list(ranges.chosen.values())
    result = {
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tensors": len(ranges.ranges),
        "quantizable": len(names),
        "chosen": {name: names.count(name) for name in sorted(set(names))},
    }
    (path.parent / RESULT).write_text(json.dumps(result))


def make_batches(samples: int) -> Iterator[dict[str, np.ndarray]]:
    """Seeded noise with the mean and the spread of normalized images."""
    random = np.random.default_rng(0)
    for start in range(0, samples, BATCH_SIZE):
        rows = min(BATCH_SIZE, samples - start)
        yield {"x": random.standard_normal((rows, *SHAPE), dtype=np.float32)}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
