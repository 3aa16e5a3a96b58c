"""What a request to the API server can fail with; one class for each answer that somebody treats apart."""


class ApiError(Exception):
    """Any failed request. ``status`` is the HTTP status, 0 when there was no answer."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class NotFound(ApiError):
    """The object, or its kind, does not exist."""


class AlreadyExists(ApiError):
    """An object of this name exists."""


class Conflict(ApiError):
    """A precondition (resourceVersion, uid) no longer holds: fetch and decide again."""


class Forbidden(ApiError):
    """RBAC, a quota or an admission policy refused."""


class Invalid(ApiError):
    """The API server refused the content; the same content will be refused again."""


class Unavailable(ApiError):
    """No answer, too many requests, or a fault of the server: try again later."""


class NotLeader(Exception):
    """A write was refused here because this process does not hold the Lease."""


def parse_error(status: int, reason: str, message: str) -> ApiError:
    """The class for a metav1.Status: by its reason where one HTTP status means two things, else by the status."""
    if reason == "AlreadyExists":
        return AlreadyExists(status, reason, message)
    kinds: dict[int, type[ApiError]] = {400: Invalid, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid}
    return kinds.get(status, Unavailable)(status, reason, message)
