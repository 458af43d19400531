"""The target ``v2``: a model repository, and the server of the V2 protocol that reads it.

* A generation is served when the server answers the bundle's own golden rows rightly, under the name and
  without a version, as clients ask. Before that this target does not say so.
* New before old: the new generation is made visible and loaded while the old one answers; nothing is ever
  unloaded first, since servers answer 404 in between. Only a deployment with no model at all unloads.
* A server that refuses, or answers wrongly, gets the former generation back, and the refusal is told.
* At every look: is it ready, and is the version that it names the right one? Golden rows are asked after
  every load, at a start, after every look that failed, and always of a server that names no versions.
* Bodies are always JSON objects, ``{}`` at least: there are servers that refuse an empty one.

The share cannot be split over this API. Telemetry comes from outside.
"""

import base64
import logging
from typing import Any

import httpx
import numpy as np

from daemon.control.targets.proofs import Proof, Proofs
from daemon.control.targets.repository import RepositoryTarget
from daemon.control.targets.target import Abilities, Observed, Unreachable, active
from daemon.serving.slot import GOLDEN_ATOL, GOLDEN_RTOL, NUMPY_TYPES
from policies.bundle import Golden
from policies.errors import PermanentError
from policies.terms import Deployment, Slot

log = logging.getLogger(__name__)

LOOK_S = 3.0
ASK_S = 30.0
LOAD_S = 120.0
_AWAY = frozenset({502, 503, 504})
"""What a server or its gateway says while it starts, stops or is full."""


class V2Target:
    """One model on one server."""

    abilities = Abilities(splits=False, previous=False, spool=False, exits=False)

    def __init__(self, repository: RepositoryTarget, url: str, model: str, proofs: Proofs) -> None:
        self._repository = repository
        self._proofs = proofs
        self._model = model
        self._url = url
        self._client = httpx.Client(base_url=url, follow_redirects=False)
        self._answered: Slot | None = None

    # -- the target -------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """Return what the folder says, if the server answers accordingly.

        Raises:
            Unreachable: The server does not answer.
            PermanentError: The record cannot be read.
        """
        seen, record = self._repository.observed(), self._repository.record()
        top = None if record is None else active(record.deployment)
        if top is None or not seen.ready:
            self._live()
            return seen
        problem = self._disagrees(top)
        if problem is None:
            return seen
        # The folder says one thing and the server another: what counts is what answers.
        return seen.model_copy(
            update={"stable": None, "newcomer_share": 0.0, "ready": False, "problem": problem}
        )

    def apply(self, deployment: Deployment) -> Observed:
        """Make a deployment visible, load it, and ask it for its golden rows.

        Raises:
            Unreachable: The server does not answer; asked again, it goes on where it stopped.
            PermanentError: It refuses or answers wrongly, and has the former generation again.
        """
        self._repository.check(deployment)
        self._live()
        self._repository.prepare(deployment)
        self._repository.show(deployment)
        try:
            self._load(active(deployment))
        except PermanentError as error:
            self._go_back(deployment, error)
            raise
        self._repository.confirm()
        return self.observed()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # -- loading ----------------------------------------------------------------------------------------

    def _load(self, top: Slot | None) -> None:
        if top is None:
            if self._answered is not None or self._ready():
                self._call("POST", f"/v2/repository/models/{self._model}/unload", {}, LOAD_S)
            self._answered = None
            return
        if self._answered == top and self._disagrees(top) is None:
            return
        self._answered = None
        if not self._listed():
            raise PermanentError(
                f"expected model {self._model!r} in the index of {self._url}, it is not there; "
                f"does the server read {self._repository.folder.parent}?"
            )
        self._call("POST", f"/v2/repository/models/{self._model}/load", {}, LOAD_S)
        problem = self._disagrees(top)
        if problem is not None:
            raise PermanentError(problem)
        log.info("loaded model=%s generation=%d url=%s", self._model, top.generation, self._url)

    def _go_back(self, refused: Deployment, why: PermanentError) -> None:
        """Show and load what was served before."""
        log.warning("refused model=%s revision=%d: %s", self._model, refused.revision, why)
        record = self._repository.record()
        former = None if record is None else record.former
        if former is None:
            former = Deployment(
                revision=0,
                model=self._model,
                stable=None,
                newcomer=None,
                newcomer_share=0.0,
                previous=None,
            )
        self._repository.show(former)
        try:
            self._load(active(former))
        except PermanentError as error:
            # The next look sees that the server does not answer as it should, and the turn calls a person.
            log.error("the former generation is refused too: %s", error)

    # -- asking -----------------------------------------------------------------------------------------

    def _disagrees(self, top: Slot) -> str | None:
        """Return how the server's answers differ from the generation that shall answer, or None."""
        if not self._ready():
            self._answered = None
            return f"expected model {self._model!r} to be ready at {self._url}, it is not"
        metadata = self._call("GET", f"/v2/models/{self._model}", None, LOOK_S)
        versions = metadata.get("versions") or []
        if versions and str(top.generation) not in versions:
            self._answered = None
            return f"expected generation {top.generation} at {self._url}, it serves versions {versions}"
        if self._answered == top and versions:
            return None
        problem = self._wrong(top, self._proofs.of(top.bundle))
        self._answered = top if problem is None else None
        return problem

    def _wrong(self, top: Slot, proof: Proof) -> str | None:
        """Return which golden row is answered wrongly, or None."""
        for number, golden in enumerate(proof.meta.goldens):
            answer = self._call("POST", f"/v2/models/{self._model}/infer", _question(proof, golden), ASK_S)
            named = answer.get("model_version")
            if named and named != str(top.generation):
                return f"expected answers of generation {top.generation} from {self._url}, got {named!r}"
            for name, wanted in (("logits", golden.logits_b64), ("embedding", golden.embedding_b64)):
                gap = _gap(answer, name, np.frombuffer(base64.b64decode(wanted), "<f4"))
                if gap is not None:
                    return (
                        f"expected {name} of golden {number} ({golden.kind}) of {top.bundle} "
                        f"from {self._url}, got {gap}"
                    )
        return None

    def _live(self) -> None:
        self._get_ok("/v2/health/live", unreachable=True)

    def _ready(self) -> bool:
        return self._get_ok(f"/v2/models/{self._model}/ready", unreachable=False)

    def _listed(self) -> bool:
        index = self._send("POST", "/v2/repository/index", {}, LOOK_S).json()
        return isinstance(index, list) and any(
            isinstance(item, dict) and item.get("name") == self._model for item in index
        )

    def _get_ok(self, path: str, unreachable: bool) -> bool:
        try:
            answer = self._client.get(path, timeout=LOOK_S)
        except httpx.TransportError as error:
            raise self._away(error) from error
        if answer.status_code != 200 and unreachable:
            raise self._away(f"{answer.status_code} of {path}")
        return answer.status_code == 200

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        answer = self._send(method, path, body, timeout_s)
        if not answer.content:
            return {}
        try:
            found = answer.json()
        except ValueError as error:
            raise PermanentError(f"expected JSON from {self._url}{path}, got {error}") from error
        return found if isinstance(found, dict) else {}

    def _send(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body, timeout=timeout_s)
        except httpx.TransportError as error:
            raise self._away(error) from error
        if answer.status_code in _AWAY:
            raise self._away(f"{answer.status_code} of {path}")
        if answer.status_code != 200:
            raise PermanentError(f"{self._url} refused {path}: {answer.status_code} {answer.text[:500]}")
        return answer

    def _away(self, why: object) -> Unreachable:
        self._answered = None
        return Unreachable(
            f"expected a server of the V2 protocol at {self._url}, got {why!r}; is it running?"
        )


def _question(proof: Proof, golden: Golden) -> dict[str, Any]:
    spec = proof.meta.input
    x = np.frombuffer(base64.b64decode(golden.input_b64), NUMPY_TYPES[spec.datatype])
    tensor = {
        "name": spec.name,
        "datatype": spec.datatype.value,
        "shape": [golden.rows, *spec.shape[1:]],
        "data": x.tolist(),
    }
    return {"inputs": [tensor], "outputs": [{"name": "logits"}, {"name": "embedding"}]}


def _gap(answer: dict[str, Any], name: str, wanted: np.ndarray) -> str | None:
    """Return how an output differs from its golden numbers, or None."""
    outputs = answer.get("outputs")
    found = [o for o in outputs if isinstance(o, dict) and o.get("name") == name] if outputs else []
    if len(found) != 1:
        return "no such output"
    try:
        came = np.asarray(found[0].get("data"), np.float32).ravel()
    except (TypeError, ValueError):
        return "something that is no numbers"
    if came.shape != wanted.shape:
        return f"{came.size} numbers instead of {wanted.size}"
    gap = np.abs(wanted - came)
    # NaN compares false with everything, so an answer of NaN is a gap too.
    if not (gap <= GOLDEN_ATOL + GOLDEN_RTOL * np.abs(wanted)).all():
        return f"a gap of {float(gap.max()):.3g}"
    return None
