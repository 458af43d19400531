"""What instard tells: entries of its journal, and how the task stands."""

from dataclasses import dataclass
from typing import Any

from instar_client.errors import Unexpected


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the journal: number, moment (seconds since the epoch), kind and body."""

    seq: int
    at: float
    kind: str
    body: dict[str, Any]
    digest: str

    @classmethod
    def read(cls, plain: Any) -> "Event":
        """Return an event of an answer.

        Raises:
            Unexpected: Something else.
        """
        try:
            return cls(
                int(plain["seq"]),
                float(plain["at"]),
                str(plain["kind"]),
                dict(plain["body"]),
                str(plain["digest"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Unexpected(f"expected a journal entry, got {str(plain)[:200]}") from error


@dataclass(frozen=True, slots=True)
class Status:
    """How the task stands; ``all`` holds everything that instard said."""

    task: str
    model: str
    generation: int | None
    phase: str
    serving: str
    drift: str
    newcomer_share: float
    frozen: bool
    all: dict[str, Any]

    @classmethod
    def read(cls, plain: Any) -> "Status":
        """Return the status of an answer.

        Raises:
            Unexpected: Something else.
        """
        try:
            return cls(
                task=str(plain["task"]),
                model=str(plain["model"]),
                generation=plain["generation"],
                phase=str(plain["phase"]),
                serving=str(plain["serving"]),
                drift=str(plain["drift"]),
                newcomer_share=float(plain["newcomer_share"]),
                frozen=plain["frozen"] is not None,
                all=dict(plain),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Unexpected(f"expected a status, got {str(plain)[:200]}") from error
