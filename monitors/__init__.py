"""From observations to signals. A new monitor is one file, one line here, and its test."""

from collections.abc import Mapping

from monitors.contract import Factory
from monitors.drift import Drift
from monitors.errors import Errors
from monitors.latency import Latency

BUILTIN: Mapping[str, Factory] = {
    "drift": Drift,
    "errors": Errors,
    "latency": Latency,
}
