"""The real TensorRT for RTX, as far as it goes without a GPU: it refuses in words."""

from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from rtx import build_tiny

from deploy.engines.tensorrt_native import NativeEngine, PlanFile
from export.errors import EngineError
from export.gpu import read_gpu
from export.tensorrt.products import PRODUCTS


@pytest.mark.skipif(read_gpu() is not None, reason="there is an NVIDIA GPU")
def test_an_engine_is_refused_with_the_librarys_own_words(tmp_path: Path) -> None:
    content, _ = build_tiny(tmp_path)
    for data in (content, content[:100], b"nothing of the kind"):
        with pytest.raises(EngineError, match=r"TensorRT for RTX cannot open m\.engine: \S+"):
            NativeEngine(PRODUCTS["tensorrt_rtx"], PlanFile(data, "m.engine"))


def test_a_plugin_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    library = tmp_path / "ours.so"
    library.write_bytes(b"no library")
    with pytest.raises(EngineError, match=r"plugin library ours\.so cannot be loaded"):
        NativeEngine(
            PRODUCTS["tensorrt_rtx"], PlanFile(b"", "m.engine", host_code=True, plugins=(library,))
        )
