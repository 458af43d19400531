"""The setting ``--target``, read: which target, and where.

``serve``: instar-serve on this host. ``repository:DIR``: a model repository. ``v2:DIR,URL``: a model
repository, and the server of the V2 protocol that reads it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from daemon.control.targets.serve import ServeTarget
from daemon.control.targets.target import Target
from daemon.store.blobs import Blobs

_FORMS = "serve, repository:DIR or v2:DIR,URL"


@dataclass(frozen=True)
class Choice:
    """What ``--target`` says."""

    kind: Literal["serve", "repository", "v2"]
    folder: Path | None = None
    url: str | None = None


def parse(text: str) -> Choice:
    """Return what a text chooses.

    Raises:
        ValueError: With what was expected.

    >>> parse("v2:/models,http://127.0.0.1:8080").url
    'http://127.0.0.1:8080'
    >>> parse("repository:/models").kind
    'repository'
    """
    kind, _, rest = text.partition(":")
    if text == "serve":
        return Choice("serve")
    if kind == "repository" and rest:
        return Choice("repository", Path(rest).absolute())
    if kind == "v2":
        folder, _, url = rest.rpartition(",")
        if folder:
            return Choice("v2", Path(folder).absolute(), _checked(url))
    raise ValueError(f"expected {_FORMS}")


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"expected {_FORMS}, the URL as http(s)://HOST:PORT")
    if parts.username is not None or parts.password is not None:
        # It would come into the log and the journal.
        raise ValueError("expected a URL without user and password")
    return url.rstrip("/")


def open_target(choice: Choice, model: str, socket: Path, blobs: Blobs) -> Target:
    """Return the chosen target of a model; ``socket`` is instar-serve's."""
    if choice.folder is None:
        return ServeTarget(socket)
    # The runtime stays unloaded where instar-serve does the proving.
    from daemon.control.targets.proofs import Proofs
    from daemon.control.targets.repository import RepositoryTarget

    proofs = Proofs(blobs.root, model)
    repository = RepositoryTarget(choice.folder, model, blobs, proofs)
    if choice.url is None:
        return repository
    from daemon.control.targets.v2 import V2Target

    return V2Target(repository, choice.url, model, proofs)
