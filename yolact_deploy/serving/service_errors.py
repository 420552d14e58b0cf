"""The failures of a request: what is wrong with it or with the service at the moment, and the HTTP status."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP
        reason: a word for the metrics
        retry_after: seconds after which it may succeed, if it may
    """

    def __init__(self, status: int, message: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after


class MalformedError(RequestError):
    """A body that cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, reason="malformed")


def bad_request(message: str, *, status: int = 400, reason: str = "malformed") -> RequestError:
    """The client's mistake."""
    return RequestError(status, message, reason=reason)


def overloaded() -> RequestError:
    """The queue is full."""
    return RequestError(429, "the queue is full: try again later", reason="queue_full", retry_after=1)


def too_late(seconds: float) -> RequestError:
    """The request was accepted and not finished in time."""
    return RequestError(
        503, f"the request was not finished within {seconds:g} s: try again later", reason="timeout", retry_after=1
    )


def ending() -> RequestError:
    """The service was asked to end."""
    return RequestError(503, "the service is shutting down", reason="shutdown", retry_after=5)
