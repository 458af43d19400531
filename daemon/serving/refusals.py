"""Why the data plane says no, in words of the domain; ``front.py`` alone turns them into HTTP codes."""

from policies.errors import PermanentError, TemporaryError


class Malformed(PermanentError):  # noqa: N818  the domain's word
    """The request breaks the protocol or the model's input contract."""


class Unknown(PermanentError):  # noqa: N818
    """The request names a model, a version or a path that is not here."""


class TooLarge(PermanentError):  # noqa: N818
    """The body is larger than this server reads."""


class NotReady(TemporaryError):  # noqa: N818
    """No stable model is loaded yet."""


class Busy(TemporaryError):  # noqa: N818
    """More requests wait than this server keeps waiting."""


class ModelFailed(TemporaryError):  # noqa: N818
    """The model could not answer, or its answer is not finite."""


class BundleRefused(PermanentError):  # noqa: N818
    """A bundle is not what its digest, its metadata or its golden outputs say."""


class DeploymentRefused(PermanentError):  # noqa: N818
    """A wanted deployment cannot be served; what was served before is served on."""
