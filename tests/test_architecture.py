"""Who may import whom, and that docs/design.md names every module."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = {"export": set(), "quantize": {"export"}, "deploy": {"export", "quantize"}}
LEAN = {
    "click",
    "google",  # protobuf, which onnx brings
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnxruntime",
    "rich",
}
"""Third-party packages of the core; anything else is an extra."""

SERVE = {"grpc", "httptools", "orjson", "starlette", "uvicorn", "uvloop"}
"""What the serve extra brings: deploy/serving may import it at its top, and nothing else may."""

NEED_TORCH = {
    "deploy/inputs/dynamic_axes.py",
    "deploy/findings.py",
    "deploy/commands/fusing.py",
    "deploy/loading/containers.py",
    "deploy/loading/model_files.py",
    "deploy/bundle/packing.py",
    "deploy/loading/parametrizations.py",
    "deploy/loading/quantized.py",
    "deploy/pipeline.py",
    "deploy/judging/reference.py",
    "deploy/judging/repeats.py",
    "deploy/inputs/batch_axis.py",
    "deploy/inputs/signatures.py",
    "deploy/reuse.py",
    "deploy/source.py",
    "deploy/loading/tensors.py",
    "deploy/loading/trust.py",
    "deploy/loading/unpicklable.py",
    "deploy/loading/weights.py",
    "export/capture/agreement.py",
    "export/capture/amplification.py",
    "export/capture/arrays.py",
    "export/capture/padded_encoders.py",
    "export/capture/program.py",
    "export/capture/copying.py",
    "export/capture/decided_sizes.py",
    "export/capture/dynamic_axes.py",
    "export/fusion",
    "export/capture/idle_autocast.py",
    "export/capture/image_model.py",
    "export/capture/inspection.py",
    "export/capture/ladder.py",
    "export/capture/locating.py",
    "export/onnx/adaptive_pooling.py",
    "export/onnx/attention.py",
    "export/onnx/complex",
    "export/onnx/composed",
    "export/onnx/computed_weights.py",
    "export/onnx/constant_matrices.py",
    "export/onnx/constant_systems.py",
    "export/onnx/exporter.py",
    "export/onnx/cleanup.py",
    "export/onnx/fixed.py",
    "export/onnx/fourier.py",
    "export/onnx/kept_operators.py",
    "export/onnx/gathers.py",
    "export/onnx/options.py",
    "export/onnx/plain_recurrence.py",
    "export/onnx/preparation.py",
    "export/onnx/query_scales.py",
    "export/onnx/recurrent_weights.py",
    "export/onnx/sample_weights.py",
    "export/onnx/short_time.py",
    "export/onnx/smooth_resizes.py",
    "export/onnx/source_traces.py",
    "export/onnx/stacks.py",
    "export/onnx/whole_splits.py",
    "export/onnx/views.py",
    "export/onnx/wave_products.py",
    "export/onnx/waves.py",
    "export/capture/float64.py",
    "export/capture/kept_attributes.py",
    "export/capture/open_signals.py",
    "export/capture/other_sizes.py",
    "export/capture/tensor_fills.py",
    "export/capture/counted_numbers.py",
    "export/capture/places_along.py",
    "export/capture/quick_shapes.py",
    "export/capture/randomness.py",
    "export/capture/replaced_calls.py",
    "export/capture/remedies.py",
    "export/capture/outputs.py",
    "export/capture/parameters.py",
    "export/capture/signature.py",
    "export/capture/surroundings.py",
    "export/capture/whole_scales.py",
    "export/capture/embedding_bags.py",
}
"""What only `deploy build` imports; nothing else may import torch at its top."""


def _modules() -> list[Path]:
    return [path for house in HOUSES for path in sorted((ROOT / house).rglob("*.py"))]


def _core() -> list[str]:
    """Modules that a lean image imports: all but those of the build extra."""
    names = [path.relative_to(ROOT).as_posix() for path in _modules()]
    return [name for name in names if not name.startswith(tuple(NEED_TORCH))]


def _imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Names of the packages that a file imports; with `top_level` only when it is imported."""
    tree = _parse(path)
    nodes = list(_top_level(tree)) if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import, those for type checkers alone left out."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down_only(path: Path) -> None:
    house = path.relative_to(ROOT).parts[0]
    imported = {name.partition(".")[0] for name in _imports(path)} & set(HOUSES)
    assert imported - {house} <= HOUSES[house]


@pytest.mark.parametrize("name", _core())
def test_the_core_imports_nothing_beyond_its_dependencies(name: str) -> None:
    path = ROOT / name
    top = {module.partition(".")[0] for module in _imports(path, top_level=True)}
    standard = __import__("sys").stdlib_module_names
    extra = SERVE if name.startswith("deploy/serving/") else set()
    assert top <= LEAN | set(HOUSES) | set(standard) | extra


def test_only_serving_imports_serving_at_its_top() -> None:
    """So the rest of the core loads without the serve extra."""
    others = [path for path in _modules() if "serving" not in path.parts]
    assert not [p for p in others if "deploy.serving" in {*_imports(p, top_level=True)}]


def test_the_direction_test_can_fail(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def late():\n    from deploy import cli\n")
    assert list(_imports(wrong)) == ["deploy"]
    assert not list(_imports(wrong, top_level=True))


def test_the_design_page_names_every_module() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    names = [path.relative_to(ROOT).as_posix() for path in _modules()]
    missing = [
        name
        for name in names
        if not name.endswith(("__init__.py", "__main__.py")) and Path(name).name not in design
    ]
    assert missing == []
