"""Every error that is the user's to act on, in one tree.

    DeployError                     base; the command line catches only this
    ├── InputError                  wrong use or bad input                        exit 2
    │   ├── ConfigError             an option, a key of [tool.deploy], a flag
    │   ├── LoadError               the model file cannot be read
    │   │   └── TrustError          the model file needs code that was not trusted
    │   ├── DataError               calibration or evaluation data
    │   ├── BundleError             a bundle that is missing, incomplete or tampered with
    │   └── MissingExtraError       an optional dependency is not installed
    ├── ExportError                 capture or ONNX export failed on every rung   exit 1
    ├── QuantizeError               a model that cannot be put in fewer bits      exit 1
    │   └── NothingToQuantizeError  it has no layer that could be
    ├── EngineError                 an engine could not be built, opened or run   exit 1
    ├── ServerError                 a running server cannot be reached or refuses exit 1
    └── GateError                   a gate failed: parity, regression             exit 1

A message says what is wrong, where, and what to do about it. Anything outside this tree is a bug
and keeps its traceback.
"""

from dataclasses import dataclass


class DeployError(Exception):
    """Base of every error that a user can act on. The message says what, where and the fix."""

    exit_code = 1


class InputError(DeployError):
    """Wrong use or bad input; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """An option has a value that cannot be used, or is not known."""


@dataclass(frozen=True)
class Remedy:
    """What a call lacked, in the words of both its callers.

    Attributes:
        lead: the words before it.
        flags: of the command line, each with its value: ``("--trust", "nets")``.
        python: the same for a caller in Python: ``trust=("nets",)``.
    """

    lead: str
    flags: tuple[tuple[str, ...], ...]
    python: str


class LoadError(InputError):
    """The model file cannot be read as a model; `remedy` is what would mend the call, if known.

    `message` is the text without the remedy, for whoever says that in another way.
    """

    def __init__(self, message: str, remedy: Remedy | None = None) -> None:
        super().__init__(message if remedy is None else f"{message} {remedy.lead} {remedy.python}")
        self.message = message
        self.remedy = remedy


class TrustError(LoadError):
    """The model file names code that the user has not trusted; nothing of it was run."""


class DataError(InputError):
    """Calibration or evaluation data is unusable; the message names the file or the row."""


class BundleError(InputError):
    """A bundle is missing, incomplete, or does not match its own hashes."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message says which extra brings it."""


class ExportError(DeployError):
    """Capture, fusion or the ONNX export failed.

    `place` is the module and the line of the user's model, where known; the message holds it too.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class QuantizeError(DeployError):
    """The ONNX model cannot be calibrated or quantized as asked."""


class NothingToQuantizeError(QuantizeError):
    """The ONNX model has no layer that could be put in fewer bits."""


class EngineError(DeployError):
    """An engine could not be built, opened or run."""


class ServerError(DeployError):
    """A running server cannot be reached, or answers otherwise than with what was asked for.

    `status` is that of HTTP; None where no answer came, or one that cannot be read.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class GateError(DeployError):
    """A gate failed: parity does not hold, or a report shows a regression."""
