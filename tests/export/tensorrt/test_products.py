"""A library that does not start on a machine says so in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import EngineError
from export.tensorrt.products import PRODUCTS, ErrorLog, start


class Logger:
    """The base class of TensorRT's loggers."""

    ERROR, INTERNAL_ERROR, INFO = "error", "internal error", "info"


TRT = SimpleNamespace(ILogger=Logger)


def test_what_starts_is_given_the_logger() -> None:
    log = ErrorLog(TRT)
    assert start(PRODUCTS["tensorrt_rtx"], lambda logger: logger, log) is log.logger


@pytest.mark.parametrize(
    ("said", "words"),
    [(("error", "CUDA initialization failure: 35"), "failure: 35"), (None, "no reason given")],
    ids=["said", "silent"],
)
def test_a_library_that_gives_nothing_is_an_error_with_its_words(
    said: tuple[str, str] | None, words: str
) -> None:
    def refuse(logger: Any) -> None:
        if said is not None:
            logger.log(*said)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EngineError, match=f"RTX cannot be started on this machine: .*{words}"):
        start(PRODUCTS["tensorrt_rtx"], refuse, ErrorLog(TRT))
