"""The errors that may cross a room's border.

A message says what was expected, what came, where, and what to do.
"""

from pydantic import ValidationError


class InstarError(Exception):
    """Anything Instar raises on purpose."""


class TemporaryError(InstarError):
    """The same call may succeed later.

    Args:
        message: What was expected, what came, where, what to do.
        retry_after_s: Seconds after which a retry makes sense; >= 0.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermanentError(InstarError):
    """The same call will fail again until somebody changes its input."""


class PolicyError(PermanentError):
    """A policy cannot be accepted; names the key, the clause and the line."""


class IllegalMove(PermanentError):  # noqa: N818  the domain's word, not an "Error"
    """A candidate was asked to go where the lifecycle has no road."""


class TamperError(PermanentError):
    """Bytes are not what their digest, signature or chain says."""


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong with a term, in a line, without what was in it."""
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
