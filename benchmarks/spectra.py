"""Spectra of sounds and Fourier transforms: as products against the engines' own operators.

    python benchmarks/spectra.py FOLDER [case ...]

One transform a model, batch 1 or as many rows as the case says, all cores; both files in ONNX
Runtime, and as products in OpenVINO, against eager, each in a process of its own, blocks in turn in
random order. The error is the largest against float64, over the largest value. Prints a row of a
table for each case: above 1 products pay.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from conditions import describe_conditions
from fusion import compare
from torch import Tensor, nn

from deploy.engines import EngineSpec, open_engine
from deploy.measuring.machine import usable_cores
from export.capture.program import capture
from export.onnx.exporter import to_onnx

SECOND = 16000
"""Values of a second of sound."""


def hear(size: int, hop: int) -> Callable[[Tensor], Tensor]:
    """The loudness of a second of sound by short times."""
    window = torch.hann_window(size)
    return lambda x: torch.stft(x, size, hop, window=window, return_complex=True).abs()


CASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "stft of 256 by 64": (hear(256, 64), (1, SECOND)),
    "stft of 400 by 160": (hear(400, 160), (1, SECOND)),
    "stft of 512 by 128": (hear(512, 128), (1, SECOND)),
    "stft of 1024 by 256": (hear(1024, 256), (1, SECOND)),
    "stft of 2048 by 512": (hear(2048, 512), (1, SECOND)),
    "rfft of 8192, a filter, irfft, 64 channels": (
        lambda x: torch.fft.irfft(torch.fft.rfft(x, n=8192) * (0.5 - 0.5j), n=8192),
        (1, 64, 4096),
    ),
    "rfft2, irfft2 of 14x14, 384 channels": (
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), s=(14, 14), norm="ortho"),
        (1, 384, 14, 14),
    ),
    "real part of fft2 of 128x256": (lambda x: torch.fft.fft2(x).real, (1, 128, 256)),
}


class Applied(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What it makes of `x`."""
        return self.function(x)


def write_files(function: Callable[[Tensor], Tensor], x: Tensor, folder: Path) -> tuple[Path, Path]:
    """The file with the exporter's own operators, and that with products."""
    folder.mkdir(parents=True, exist_ok=True)
    program = capture(Applied(function).eval(), {"x": x}, keyword=False, dynamic_batch=False)
    names = {"input_names": ["x"], "output_names": ["y"]}
    left = {"return_value": False}
    with (
        mock.patch("export.onnx.preparation.write_out_transforms", **left),
        mock.patch("export.onnx.preparation.write_out_short_time_spectra", **left),
    ):
        own = to_onnx(program, folder / "operators.onnx", **names).path
    return own, to_onnx(program, folder / "products.onnx", **names).path


def measure_error(spec: EngineSpec, x: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference over the largest value."""
    with open_engine(spec) as engine:
        (found,) = engine({"x": x}).values()
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def main() -> None:
    """Every case in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    cores = usable_cores()
    print(describe_conditions("onnxruntime", "openvino"))
    print("| case | operators, ms | error | products, ms | error | ratio (95%) | OpenVINO, ms |")
    for case in options.cases:
        function, shape = CASES[case]
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        exact = function(x.double()).numpy()
        own, products = write_files(function, x, options.folder / case.replace(" ", "_"))
        specs = [EngineSpec("onnxruntime", "fp32", str(path), cores) for path in (own, products)]
        errors = [f"{measure_error(spec, x.numpy(), exact):.0e}" for spec in specs]
        found = compare(specs[0], specs[1], x.numpy())
        other = EngineSpec("openvino", "fp32", str(products), cores)
        low, high = found["ci95"]
        cells = (
            *(str(found["unmerged_ms"]), errors[0], str(found["merged_ms"]), errors[1]),
            f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})",
            str(compare(specs[1], other, x.numpy())["merged_ms"]),
        )
        print(f"| {' | '.join((case, *cells))} |", flush=True)


if __name__ == "__main__":
    main()
