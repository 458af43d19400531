"""What whoever runs the demo asked for: a frozen set of flags, checked where it is made."""

from dataclasses import dataclass
from pathlib import Path

from policies.errors import PermanentError

HOST = "127.0.0.1"
KINDS = ("tilt-fade", "noise", "blur")


@dataclass(frozen=True)
class Ports:
    """Where the three listeners of the demo are, all on the loopback address."""

    serve: int
    metrics: int
    control: int

    @classmethod
    def parse(cls, text: str) -> "Ports":
        """Read ``SERVE/METRICS/CONTROL``.

        Raises:
            PermanentError: The text is something else.

        >>> Ports.parse("8080/8082/8090")
        Ports(serve=8080, metrics=8082, control=8090)
        """
        words = text.split("/")
        if len(words) != 3 or not all(word.isdecimal() and 0 < int(word) < 65536 for word in words):
            raise PermanentError(
                f"expected --ports SERVE/METRICS/CONTROL such as 8080/8082/8090, got {text!r}"
            )
        ports = cls(*(int(word) for word in words))
        if len(set(ports.named().values())) != 3:
            raise PermanentError(f"expected three different ports, got {text!r}")
        return ports

    def named(self) -> dict[str, int]:
        """Return every port under what it is for."""
        return {"instar-serve": self.serve, "instar-serve's metrics": self.metrics, "instard": self.control}


@dataclass(frozen=True)
class Wishes:
    """The flags of ``instar demo``."""

    state: Path
    example: Path
    rate: float
    drift: str
    strength: float
    budget_cpu_s: float | None
    seed: int
    quiet_s: float
    wait_for_me: bool
    leave: bool
    keep: bool
    ports: Ports

    def __post_init__(self) -> None:
        """Refuse what no story can be made of.

        Raises:
            PermanentError: A flag is out of range.
        """
        if self.drift not in KINDS:
            raise PermanentError(f"expected --drift to be one of {', '.join(KINDS)}, got {self.drift!r}")
        for name, value, low, high in (
            ("--rate", self.rate, 20.0, 150.0),
            ("--strength", self.strength, 0.0, 3.0),
            ("--quiet-s", self.quiet_s, 0.0, 86_400.0),
        ):
            if not low <= value <= high:
                raise PermanentError(f"expected {name} between {low:g} and {high:g}, got {value:g}")
