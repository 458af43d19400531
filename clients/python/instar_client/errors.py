"""What can go wrong, by what to do about it."""


class ClientError(Exception):
    """Anything that this package raises on purpose."""


class Refused(ClientError):  # noqa: N818  says what happened
    """The same request will be refused again; ``sentence`` says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(f"instard refused with {status}: {sentence}")
        self.status = status
        self.sentence = sentence


class TooBusy(ClientError):  # noqa: N818  says what happened
    """Still turned away after all attempts; sending the same again later is safe."""


class NotReached(ClientError):  # noqa: N818  says what happened
    """Nobody answered after all attempts; sending the same again later is safe."""


class Unexpected(ClientError):  # noqa: N818  says what happened
    """An answer that this version of the client does not understand."""
