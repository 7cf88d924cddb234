"""Bundles that differ from the tiny one in what an export looks at."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from deploy.bundle.folder import Bundle
from deploy.bundle.manifest import BundledEngine
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


@dataclass(frozen=True)
class Recorded(BundledEngine):
    """An engine whose record says with which shapes it was built."""

    record: Any = None


def with_plan(
    bundle: Bundle, *profiles: tuple[int, int, int], winner: str = "tensorrt-fp16"
) -> Bundle:
    """With an engine of TensorRT of these profiles, and bytes in the place of its file."""
    file = bundle.path / "tensorrt-fp16" / "model.plan"
    file.parent.mkdir()
    file.write_bytes(b"a plan")
    shapes = [{"x": tuple((size, 4) for size in sizes)} for sizes in profiles]
    record = SimpleNamespace(profiles=[SimpleNamespace(shapes=each) for each in shapes])
    entry = Recorded("tensorrt", "fp16", "tensorrt-fp16/model.plan", 0.1, record=record)
    engines = {**bundle.manifest.engines, "tensorrt-fp16": entry}
    return alter(bundle, engines=engines, winner=winner)
