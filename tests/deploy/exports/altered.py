"""Bundles that differ from the tiny one in what an export looks at."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploy.bundle import Bundle
from deploy.manifest import BundledEngine
from export.artifacts import TensorSpec


def alter(bundle: Bundle, **changes: Any) -> Bundle:
    """With other fields of the manifest, which is not read again."""
    return replace(bundle, manifest=replace(bundle.manifest, **changes))


def alter_report(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Bundle:
    """With another report on disk."""
    path = bundle.path / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    change(report)
    path.write_text(json.dumps(report), encoding="utf-8")
    return bundle


def with_shapes(bundle: Bundle, takes: tuple[Any, ...], *gives: tuple[Any, ...]) -> Bundle:
    """With one input ``x`` and outputs ``out0``, ``out1`` and so on of these shapes."""
    outputs = tuple(TensorSpec(f"out{i}", shape, "float32") for i, shape in enumerate(gives))
    return alter(bundle, inputs=(TensorSpec("x", takes, "float32"),), outputs=outputs)


def with_plan(bundle: Bundle, *, winner: str = "tensorrt-fp16") -> Bundle:
    """With an engine of TensorRT, and bytes in the place of its file."""
    file = bundle.path / "tensorrt-fp16" / "model.plan"
    file.parent.mkdir()
    file.write_bytes(b"a plan")
    entry = BundledEngine("tensorrt", "fp16", "tensorrt-fp16/model.plan", 0.1)
    engines = {**bundle.manifest.engines, "tensorrt-fp16": entry}
    return alter(bundle, engines=engines, winner=winner)
