"""Sample reports, fresh dicts on every call: a test may change what it gets."""

import math
from typing import Any

Report = dict[str, Any]


def latency(p50: float, base: float = 2.114, *, spread: float = 0.015) -> Report:
    speedup = base / p50
    return {
        "samples": 1600,
        "first_ms": 6.2 * p50,
        "p50_ms": p50,
        "p50_ci95": [p50 * (1 - spread), p50 * (1 + spread)],
        "p90_ms": 1.12 * p50,
        "p90_ci95": [1.09 * p50, 1.17 * p50],
        "p99_ms": 1.41 * p50,
        "p99_ci95": [1.3 * p50, 1.62 * p50],
        "speedup": speedup,
        "speedup_ci95": [speedup * (1 - 1.3 * spread), speedup * (1 + 1.3 * spread)],
        "gmacs_per_s": 40.8 / p50,
        "peak_fraction": min(0.95, 40.8 / p50 / 863),
    }


def output(sqnr: float | None, *, top1: float | None = 0.998, name: str = "logits") -> Report:
    noise = 0.0 if sqnr is None else 10 ** (-sqnr / 20)
    return {
        "name": name,
        "max_abs": 9.1 * noise,
        "mean_abs": 1.3 * noise,
        "relative_to_range": 0.31 * noise,
        "cosine": 1 - noise * noise / 2,
        "sqnr_db": sqnr,
        "top1_agreement": top1,
        "error_float64": 1.1e-7 if noise < 1e-5 else noise,
        "noise_float64": 1.4e-7,
    }


def accuracy(candidate: float, reference: float = 0.9462, samples: int = 1000) -> Report:
    def interval(value: float) -> list[float]:
        half = 1.96 * math.sqrt(value * (1 - value) / samples)
        return [value - half, min(1.0, value + half)]

    drop = reference - candidate
    return {
        "samples": samples,
        "reference": reference,
        "candidate": candidate,
        "drop": drop,
        "drop_ci95": [drop - 0.003, drop + 0.003],
        "reference_ci95": interval(reference),
        "candidate_ci95": interval(candidate),
    }


def parity(
    outputs: list[Report], *, passed: bool = True, gate: str, score: Report | None
) -> Report:
    return {
        "passed": passed,
        "gate": gate,
        "data": "evaluation" if score else "synthetic",
        "samples": 1000 if score else 32,
        "batches_checked": [1, 2, 3],
        "outputs": outputs,
        "accuracy": score,
    }


def candidate(name: str, **values: Any) -> Report:
    engine, precision = name.rsplit("-", 1)
    empty = {"status": "ok", "reason": None, "parity": None, "latency": None, "size_bytes": None}
    return {"name": name, "engine": engine, "precision": precision, **empty, **values}


def census() -> Report:
    """6.5 of 7.5 us in int8, a reformat, and two places that stay float."""

    def row(precision: str, layers: int, macs: int, time: float) -> Report:
        shares = {"share_of_macs": macs / 1000, "share_of_time": time / 7.5}
        return {"precision": precision, "layers": layers, "macs": macs, "time_ms": time, **shares}

    def left(where: str, time: float) -> Report:
        shares = {"time_ms": time, "share_of_time": time / 7.5}
        return {"where": where, "operators": ["Softmax"], "precision": "fp32", **shares}

    return {
        "status": "ok",
        "reason": None,
        "precisions": [row("int8", 20, 990, 5.0), row("fp32", 2, 10, 2.0)],
        "reformats": 3,
        "reformat_ms": 0.5,
        "reformat_share_of_time": 0.5 / 7.5,
        "remainder": [left("stages.0.attn", 1.5), left("head.act", 0.5)],
    }


def _model() -> Report:
    return {
        "name": "resnet20_cifar.pt",
        "sha256": "9f2c" * 16,
        "form": "module",
        "parameters": 272474,
        "macs": 40813184,
        "inputs": [{"name": "image", "shape": ["batch", 3, 32, 32], "dtype": "float32"}],
        "images": [],
        "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}],
        "structure": "tensor",
        "rung": "dynamo",
        "attempts": [{"rung": "strict", "error": "data-dependent control flow in head.forward"}],
        "fused": [
            {
                "paths": [f"stages.{stage}.{block}.conv1", f"stages.{stage}.{block}.bn1"],
                "kind": "conv-bn",
                "structure": "bn(conv3x3(x))",
                "parameters_before": 147_968,
                "parameters_after": 147_584,
                "macs_before": 116_006_912,
                "macs_after": 115_605_504,
                "error_float64": 1.6e-16,
                "error_float32": 1.2e-7,
                "noise_float32": 1.9e-7,
                "weights": None,
            }
            for stage in range(3)
            for block in range(3)
        ],
        "fusion": {
            "layers_before": 21,
            "layers_after": 21,
            "parameters_before": 11_699_112,
            "parameters_after": 11_684_712,
            "macs_before": 1_822_000_000,
            "macs_after": 1_818_000_000,
            "error_float32": 4.1e-7,
            "noise_float32": 3.8e-7,
            "reason": None,
        },
        "skipped": [
            {
                "where": "stages.1.0.downsample",
                "what": "conv-bn",
                "reason": "the convolution's output is also read by stages.1.0.relu",
            }
        ],
    }


def _machine() -> Report:
    return {
        "cpu": "Intel Xeon Platinum 8481C",
        "cores": 8,
        "threads": 4,
        "memory_gb": 31.3,
        "features": ["avx512_vnni", "avx512_bf16", "amx_int8"],
        "gpu": None,
        "os": "Linux 6.1",
        "python": "3.12.7",
        "versions": {"torch": "2.13.0", "onnxruntime": "1.27.0", "openvino": "2026.2.0"},
        "load_average": 0.21,
        "affinity": [0, 1, 2, 3],
        "peak_gmacs": {"fp32": 235.0, "bf16": 465.0, "int8": 863.0},
    }


def _frame() -> Report:
    base = latency(2.114)
    base.update(speedup=1.0, speedup_ci95=[1.0, 1.0])
    return {
        "schema_version": 1,
        "created": "2026-11-24T03:00:00Z",
        "deploykit": "0.1.0",
        "model": _model(),
        "machine": _machine(),
        "data": {
            "source": "cifar10_test.npz",
            "kind": "labelled",
            "calibration_samples": 256,
            "evaluation_samples": 1000,
            "observer": "minmax",
            "classes_of": "logits",
        },
        "gates": {
            "max_drop": 0.01,
            "min_sqnr_db": {"fp16": 40, "bf16": 25, "int8": 20, "mixed": 20},
        },
        "measurement": {
            "batch": 1,
            "threads": 4,
            "device": "cpu",
            "rounds": 20,
            "blocks_per_round": 2,
            "seconds": 21.3,
        },
        "control": {"ratio": 1.003, "ci95": [0.992, 1.012]},
        "baseline": candidate("torch-fp32", latency=base, size_bytes=1129472),
        "candidates": [],
        "winner": "torch",
        "verdict": "",
        "warnings": [],
        "stages": [
            {"name": name, "seconds": seconds}
            for name, seconds in (
                ("load", 0.41),
                ("capture", 3.2),
                ("fuse", 1.1),
                ("onnx", 2.6),
                ("quantize", 6.9),
                ("verify", 8.4),
                ("measure", 21.3),
            )
        ],
    }


FP32_GATE = "error to float64 at most 10x eager's own"
DROP_GATE = "accuracy drop at most 0.01 on 1000 samples"
MISSING = (
    "TensorRT for RTX is not installed: pip install 'deploykit[rtx]' on a machine with an NVIDIA "
    "GPU of compute capability 7.5 or later"
)


def labelled_report() -> Report:
    """Labels, a clear winner, and one candidate of every status."""
    report = _frame()

    def exact(sqnr: float | None) -> Report:
        return parity([output(sqnr, top1=1.0)], gate=FP32_GATE, score=accuracy(0.9462))

    def reduced(sqnr: float, value: float, *, passed: bool = True) -> Report:
        return parity([output(sqnr)], passed=passed, gate=DROP_GATE, score=accuracy(value))

    report["candidates"] = [
        candidate(
            "onnxruntime-fp32", parity=exact(131.8), latency=latency(0.981), size_bytes=1098304
        ),
        candidate(
            "onnxruntime-int8",
            status="rejected",
            reason="accuracy drops by 1.84 points (95%: 1.54 to 2.14) on 1000 samples; at most "
            "1.00 is allowed. Raise --max-drop or calibrate on more data.",
            parity=reduced(18.7, 0.9278, passed=False),
            latency=latency(0.502),
            size_bytes=322560,
        ),
        candidate("openvino-fp32", parity=exact(None), latency=latency(0.724), size_bytes=1101824),
        candidate(
            "openvino-bf16", parity=reduced(41.2, 0.9458), latency=latency(0.533), size_bytes=560128
        ),
        candidate(
            "openvino-int8",
            parity=reduced(31.4, 0.9441),
            latency=latency(0.298),
            size_bytes=318464,
            census=census(),
        ),
        candidate(
            "onnxruntime-bf16",
            status="failed",
            reason="ONNX Runtime: Could not find an implementation for Conv(11) node with name "
            "'/stages/stages.0/stages.0.0/conv1/Conv' in bfloat16 on the CPU execution provider",
        ),
        candidate(
            "tensorrt_rtx-fp16",
            status="not_run",
            reason=MISSING,
            census={"status": "not_run", "reason": "no NVIDIA GPU"},
        ),
    ]
    report["winner"] = "openvino-int8"
    report["verdict"] = (
        "OpenVINO int8 is 7.1 times as fast as PyTorch (95%: 7.0 to 7.2) and loses 0.21 points of "
        "accuracy, within the limit of 1.00."
    )
    return report


def no_data_report() -> Report:
    """No data: int8 is timed on synthetic inputs and rejected; fp32 wins."""
    report = _frame()
    report["data"] = {
        "source": None,
        "kind": "synthetic",
        "calibration_samples": 0,
        "evaluation_samples": 0,
        "observer": "minmax",
        "classes_of": None,
    }

    def measured(sqnr: float | None, gate: str) -> Report:
        return parity([output(sqnr, top1=None)], gate=gate, score=None)

    report["candidates"] = [
        candidate(
            "openvino-fp32",
            parity=measured(129.4, FP32_GATE),
            latency=latency(0.724),
            size_bytes=1101824,
        ),
        candidate(
            "openvino-int8",
            status="rejected",
            reason="no calibration data: pass --data with a .npz, a folder of images or a callable",
            parity=measured(27.0, "none: no data"),
            latency=latency(0.298),
            size_bytes=318464,
        ),
    ]
    report["winner"] = "openvino-fp32"
    report["verdict"] = (
        "OpenVINO fp32 is 2.9 times as fast as PyTorch (95%: 2.9 to 3.0); int8 needs --data."
    )
    report["warnings"] = [
        "No --data was given: parity was checked on synthetic inputs and says nothing of accuracy."
    ]
    return report


def torch_report() -> Report:
    """Nothing beats eager; times span 0.1 ms to 40 ms; the machine was not quiet; nulls abound."""
    report = _frame()
    report["model"].update(
        sha256=None, macs=None, rung=None, form="torchscript", fused=[], fusion=None, skipped=[]
    )
    report["machine"].update(memory_gb=None, load_average=5.8, gpu="NVIDIA RTX 4090")
    report["machine"]["peak_gmacs"]["bf16"] = None
    report["control"] = {"ratio": 1.062, "ci95": [1.021, 1.104]}
    report["baseline"]["latency"] |= {
        "p50_ms": 0.118,
        "p50_ci95": [0.114, 0.123],
        "p90_ms": 0.131,
        "p90_ci95": [0.127, 0.139],
        "p99_ms": None,
        "p99_ci95": None,
        "first_ms": 21.0,
    }
    slow = latency(40.2, 0.118) | {"gmacs_per_s": None, "peak_fraction": None}
    even = latency(0.116, 0.118, spread=0.04)
    exact = parity([output(127.0, top1=1.0)], gate=FP32_GATE, score=accuracy(0.9462))
    report["candidates"] = [
        candidate(
            "onnxruntime-fp32",
            status="rejected",
            reason="not faster: the 95% interval of its speed-up, 0.964 to 1.07, includes 1",
            parity=exact,
            latency=even,
            size_bytes=1098304,
        ),
        candidate(
            "openvino-fp32",
            status="rejected",
            reason="slower than the baseline",
            parity=exact,
            latency=slow,
            size_bytes=1101824,
        ),
    ]
    report["verdict"] = (
        "Nothing beats PyTorch on this machine; the bundle keeps your model as it is."
    )
    report["warnings"] = ["The load average was 5.8 on 8 cores while measuring."]
    return report


HOSTILE = "<script>alert('x')</script>\x1b[31m\"&\u202e"


def hostile_report() -> Report:
    """Every text that comes from outside carries markup and control characters."""
    report = labelled_report()
    report["model"]["name"] = HOSTILE
    report["model"]["inputs"][0]["name"] = HOSTILE
    report["model"]["skipped"] = [{"where": HOSTILE, "what": HOSTILE, "reason": HOSTILE}]
    report["model"]["fused"][0].update(paths=[HOSTILE], structure=HOSTILE)
    report["model"]["attempts"] = [{"rung": HOSTILE, "error": HOSTILE}]
    report["machine"].update(cpu=HOSTILE, os=HOSTILE, features=[HOSTILE])
    report["machine"]["versions"] = {HOSTILE: HOSTILE}
    report["data"]["source"] = HOSTILE
    report["data"]["classes_of"] = HOSTILE
    report["candidates"][1].update(name=HOSTILE, reason=HOSTILE)
    report["candidates"][1]["parity"].update(gate=HOSTILE)
    report["candidates"][1]["parity"]["outputs"][0]["name"] = HOSTILE
    report["verdict"] = HOSTILE
    report["warnings"] = [HOSTILE]
    report["stages"] = [{"name": HOSTILE, "seconds": 1.0}]
    return report


def targets_report() -> Report:
    """Of a regression: R² in place of the accuracy, and the error in the unit of the targets."""
    report = labelled_report()
    words = "the target of a sample is what a regression predicts"
    report["data"].update(labels=words, classes_axis=None)
    for row in (report["baseline"], *report["candidates"]):
        if row["parity"] and row["parity"]["accuracy"]:
            row["parity"]["accuracy"].update(measure="R²", rmse=[2.0911, 2.1042])
    return report


def heads_report() -> Report:
    """Two outputs have labels: classes of `kind`, which come first, and targets of `age`."""
    report = labelled_report()
    report["model"]["outputs"] = [
        {"name": name, "shape": ["batch", size], "dtype": "float32"}
        for name, size in (("kind", 10), ("age", 1))
    ]
    heads = [{"output": name, "axis": None} for name in ("kind", "age")]
    report["data"].update(classes_of="kind", classes_axis=None, labelled=heads)
    for row in (report["baseline"], *report["candidates"]):
        parity = row["parity"]
        if parity and parity["accuracy"]:
            (first, *_) = parity["outputs"]
            parity["outputs"] = [{**first, "name": "kind"}, {**first, "name": "age"}]
            age = accuracy(0.8123, 0.8345) | {"measure": "R²", "rmse": [2.0911, 2.1042]}
            parity["accuracies"] = {"kind": parity["accuracy"], "age": age}
    return report


def places_report() -> Report:
    """Each sample has many labels, as pixels have: the F1 of the classes stands beside."""
    report = labelled_report()
    words = "each of the 12x12 labels of a sample is 0 or 1, for one value of the output"
    report["data"].update(labels=words, classes_axis=None)
    for row in (report["baseline"], *report["candidates"]):
        if row["parity"] and row["parity"]["accuracy"]:
            row["parity"]["accuracy"].update(threshold=0.0, f1=f1(0.8123))
    return report


def f1(candidate: float, reference: float = 0.8345) -> Report:
    drop = reference - candidate
    return {
        "classes": 1,
        "reference": reference,
        "candidate": candidate,
        "drop": drop,
        "drop_ci95": [drop - 0.004, drop + 0.004],
        "lost": [],
    }


SAMPLES = {
    "labelled": labelled_report,
    "no-data": no_data_report,
    "torch": torch_report,
    "hostile": hostile_report,
    "places": places_report,
    "targets": targets_report,
}
