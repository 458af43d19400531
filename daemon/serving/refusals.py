"""Why the data plane says no, in words of the domain; ``front.py`` and ``rpc.py`` turn them into codes."""

from policies.errors import PermanentError, TemporaryError

RETRY_S = 1.0
"""After how many seconds a client that was turned away may come again."""


class Malformed(PermanentError):  # noqa: N818  the domain's word
    """The request breaks the protocol or the model's input contract."""


class Unknown(PermanentError):  # noqa: N818
    """The request names a model, a version or a path that is not here."""


class NotAllowed(PermanentError):  # noqa: N818
    """The request asks for something that this server does not do for clients."""


class TooLarge(PermanentError):  # noqa: N818
    """The body is larger than this server reads."""


class NotReady(TemporaryError):  # noqa: N818
    """No stable model is loaded yet."""


class Busy(TemporaryError):  # noqa: N818
    """More requests wait than this server keeps waiting."""


class Late(TemporaryError):  # noqa: N818
    """The request's own time was over before the model could answer."""


class ModelFailed(TemporaryError):  # noqa: N818
    """The model could not answer."""


class NotFinite(ModelFailed):
    """The model answered with something that is no number."""


class BundleRefused(PermanentError):  # noqa: N818
    """A bundle is not what its digest, its metadata or its golden outputs say."""


class DeploymentRefused(PermanentError):  # noqa: N818
    """A wanted deployment cannot be served; what was served before is served on."""


def broke_off(error: Exception) -> ModelFailed:
    """Return what a client is told of an error that nobody foresaw; the log has the rest of it."""
    return ModelFailed(
        f"expected to answer, it broke off: {type(error).__name__}; the server's log says where"
    )
