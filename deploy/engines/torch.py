"""Eager PyTorch: the baseline that every candidate must beat, and the engine when none does."""

from types import TracebackType
from typing import Self

import numpy as np

from deploy.engines.base import Array, EngineSpec, Feeds, check_feeds
from export.errors import EngineError
from export.optional import require


class TorchEngine:
    """The user's module as it is, in eval and inference mode, on the CPU."""

    def __init__(self, spec: EngineSpec) -> None:
        self._torch = require("torch", extra="build")
        from pathlib import Path

        from deploy.loading import load_model
        from export.signature import CallSignature

        self._torch.set_num_threads(spec.threads)
        loaded = load_model(Path(spec.path), trust=spec.trust, factory=spec.factory)
        self._module = loaded.module
        self._signature = CallSignature(spec.inputs, spec.outputs, spec.keyword, "")
        self.inputs = spec.inputs
        self.outputs = spec.outputs

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run the module; see `Engine`."""
        check_feeds(self.inputs, feeds)
        tensors = {
            name: self._torch.from_numpy(array if array.flags.writeable else array.copy())
            for name, array in feeds.items()
        }
        with self._torch.inference_mode():
            try:
                outputs = self._signature.call(self._module, tensors)
            except RuntimeError as error:
                raise EngineError(f"The model fails on this input: {error}") from error
        return {name: np.asarray(value) for name, value in outputs.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._module
