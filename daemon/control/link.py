"""The names that control calls its target by; what they stand for lies in ``daemon.control.targets``."""

from daemon.control.targets.target import Observed, Unreachable
from daemon.control.targets.target import Target as Link

__all__ = ["Link", "Observed", "Unreachable"]
