"""Every answer to a request that is not its result, with the HTTP status and gRPC code it has.

    RequestError                    base; a server answers it, it never ends the server
    ├── MalformedRequestError       400  INVALID_ARGUMENT    the body, a tensor, a parameter
    ├── UnauthorizedError           401  UNAUTHENTICATED     no bearer token, or another one
    ├── UnknownModelError           404  NOT_FOUND           no such model or version
    ├── TooLargeError               413  RESOURCE_EXHAUSTED  the body is over the limit
    ├── UnsupportedEncodingError    415  INVALID_ARGUMENT    a compressed body
    ├── EngineFailedError           500  INTERNAL            the engine failed on this request
    │   └── NonFiniteError          500  INTERNAL            it answered NaN or infinity
    ├── NotOfferedError             501  UNIMPLEMENTED       what this server does not do
    ├── UnavailableError            503  UNAVAILABLE         not ready, or shutting down
    │   ├── QueueFullError          503  UNAVAILABLE         more waits than the queue may hold
    │   └── WithdrawnError          503  UNAVAILABLE         accepted, and the server ends before
    └── DeadlineError               504  DEADLINE_EXCEEDED   not run within the time it had

Messages go to whoever asked, so none names a path of the server or carries a traceback.
"""

import re


class RequestError(Exception):
    """Base of every refusal.

    Attributes:
        status: HTTP status.
        code: name of the gRPC status code.
        reason: the label that failures are counted under.
        retry_after: seconds after which trying again may help; None: it will not.
        counted: its model has counted the request, as failed or answered; nobody is to do it again.
    """

    status = 500
    code = "INTERNAL"
    reason = "OTHER"
    retry_after: int | None = None
    counted = False


class MalformedRequestError(RequestError):
    """The request is not what the protocol or the model's signature asks for."""

    status, code, reason = 400, "INVALID_ARGUMENT", "MALFORMED"


class UnauthorizedError(RequestError):
    """The bearer token is missing or wrong."""

    status, code, reason = 401, "UNAUTHENTICATED", "UNAUTHORIZED"


class UnknownModelError(RequestError):
    """There is no such model, or no such version of it."""

    status, code, reason = 404, "NOT_FOUND", "UNKNOWN"


class TooLargeError(RequestError):
    """The body is larger than the server takes."""

    status, code, reason = 413, "RESOURCE_EXHAUSTED", "TOO_LARGE"


class UnsupportedEncodingError(RequestError):
    """The body is compressed; unpacking what a stranger packed has no bound."""

    status, code, reason = 415, "INVALID_ARGUMENT", "ENCODING"


class EngineFailedError(RequestError):
    """The engine failed on this request, run alone."""

    status, code, reason = 500, "INTERNAL", "BACKEND"


class NonFiniteError(EngineFailedError):
    """The engine answered NaN or infinity, which the reference never did when it was recorded."""

    reason = "NONFINITE"


class NotOfferedError(RequestError):
    """Part of the protocol that this server does not offer."""

    status, code, reason = 501, "UNIMPLEMENTED", "NOT_OFFERED"


class UnavailableError(RequestError):
    """Not ready, or shutting down."""

    status, code, reason, retry_after = 503, "UNAVAILABLE", "UNAVAILABLE", 1


class QueueFullError(UnavailableError):
    """As much waits as may wait.

    Args:
        message: what is full.
        retry_after: seconds until it may have drained.
    """

    reason = "REJECTED"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WithdrawnError(UnavailableError):
    """The server ends and has withdrawn the request, which was counted then."""

    counted = True

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class DeadlineError(RequestError):
    """It was not run within the time that it had."""

    status, code, reason = 504, "DEADLINE_EXCEEDED", "TIMEOUT"


REASONS = (
    "BACKEND",
    "CANCELED",
    "ENCODING",
    "MALFORMED",
    "NONFINITE",
    "OTHER",
    "REJECTED",
    "TIMEOUT",
    "TOO_LARGE",
    "UNAVAILABLE",
)
"""Every label a failure of a known model is counted under: their number never grows."""


def describe_failure(error: BaseException) -> str:
    """What an engine said of its failure, cut short and without what looks like a path."""
    return re.sub(r"\S*[/\\]\S*", "...", " ".join(str(error).split()))[:300]
