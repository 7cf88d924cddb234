"""NVIDIA TensorRT and TensorRT for RTX, whose Python interfaces are nearly one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.errors import EngineError
from export.optional import require


@dataclass(frozen=True)
class Product:
    """One of the two, and in what it differs from the other.

    Attributes:
        module: as Python imports it, and as engines of it are called in reports.
        title: as people call it.
        extra: that installs it.
        ahead_of_time: it builds for compute capabilities that are named, without a GPU, and then
            measures nothing; else for the GPU that it runs on.
    """

    module: str
    title: str
    extra: str
    ahead_of_time: bool


PRODUCTS: Mapping[str, Product] = {
    "tensorrt": Product("tensorrt", "NVIDIA TensorRT", "trt", ahead_of_time=False),
    "tensorrt_rtx": Product("tensorrt_rtx", "TensorRT for RTX", "rtx", ahead_of_time=True),
}


def find_product(name: str) -> Product:
    """The product whose engines are called `name`.

    Raises:
        EngineError: there is none.
    """
    if name not in PRODUCTS:
        raise EngineError(f"{name!r} is no TensorRT; choose {' or '.join(PRODUCTS)}.")
    return PRODUCTS[name]


def import_product(product: Product) -> Any:
    """Its module.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require(product.module, extra=product.extra)


class ErrorLog:
    """What a TensorRT logger has heard, errors alone; nothing is printed.

    Args:
        trt: the module of the product.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.logger = _make_logger(trt, self.errors)

    def explain(self) -> str:
        """The errors as one text."""
        return "; ".join(dict.fromkeys(self.errors)) or "no reason given"


def start(product: Product, kind: Callable[[Any], Any], log: ErrorLog) -> Any:
    """A builder or a runtime.

    Args:
        kind: ``Builder`` or ``Runtime`` of the product's module.
        log: hears why there is none.

    Raises:
        EngineError: CUDA does not start here, or the library does not know this GPU.
    """
    try:
        return kind(log.logger)
    except TypeError as error:  # the one word that its binding has for a null pointer
        raise EngineError(
            f"{product.title} cannot be started on this machine: {log.explain()}. Check that the "
            "driver and the GPU are among those that this version of it supports."
        ) from error


def _make_logger(trt: Any, errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message.strip())

    return Logger()
