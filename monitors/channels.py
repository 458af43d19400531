"""Label-free channels: what a record says of its input, as standardised scalars.

Called by the drift monitor. Fitted once on reference rows, then fixed.

* Confidence and entropy of the softmax, as logarithms: on a probability scale nearly all rows sit at 1 and
  the rest make a long tail, which costs a detector its threshold.
* The embedding's first principal components, and the logarithm of what they leave over: the residual shows
  inputs that leave the space which the reference spans.
* Whether the row left the network early. One that did has no embedding: its embedding channels say nothing
  (not a number), at fitting and after. Rows that stay are the hard ones, which is no bias, for they are
  compared with rows that stayed on the reference; when other rows begin to leave, ``exit`` moves.
* With fewer than ``LEAST_STAYED`` rows that stayed, the embedding channels stay silent; a longer reference
  (``min_reference_rows``) gives them a voice.
* The five numbers of the input summary, and an indicator for each class predicted.
* Values are clipped at ``CLIP`` standard deviations: no single broken row can raise an alarm.
* A channel that never varied on the reference stays in: any change of it is out of the reference's range.

It knows no threshold and no time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitors.bootstrap import moments
from monitors.contract import Arrays, Floats
from monitors.spool import Block
from policies.telemetry import OUTCOMES

CLIP = 5.0
COMPONENTS = 8
LEAST_STAYED = 400
"""Below, the mean of a channel is off by so much of its allowance that its threshold loses its sense."""
SUMMARY = ("mean", "std", "min", "max", "edges")

_OK = OUTCOMES.index("ok")
_EPS = 1e-6
_FIRST_EMBEDDED = 2
"""Doubt and entropy come first, then the embedding's components and its residual."""


def usable(block: Block) -> npt.NDArray[np.bool_]:
    """Return which rows can be used: answered ok, and every number finite. Shape (n,)."""
    fine = block["outcome"] == _OK
    for field in ("logits", "embedding", "summary"):
        fine &= np.isfinite(block[field]).all(axis=1)
    return np.asarray(fine, dtype=np.bool_)


def doubt(logits: Floats) -> Floats:
    """Return log(1 - confidence) and log(entropy) of the softmax; (n, classes) to (n, 2).

    >>> doubt(np.zeros((1, 2))).round(3).tolist()
    [[-0.693, -0.367]]
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=1, keepdims=True)
    share = weights / total
    # The runner-ups are summed, not 1 - top subtracted: 1 - 0.9999999 has no digits left.
    rest = (weights.sum(axis=1) - 1.0) / total[:, 0]
    entropy = np.log(total[:, 0]) - (share * shifted).sum(axis=1)
    return np.stack([np.log(np.maximum(rest, 0.0) + _EPS), np.log(np.maximum(entropy, 0.0) + _EPS)], axis=1)


def _axes(embedding: Floats) -> tuple[Floats, Floats]:
    """Return the mean of embeddings (n, d), and their first principal directions (p, d)."""
    centre = embedding.mean(axis=0)
    covariance = np.atleast_2d(np.cov(embedding - centre, rowvar=False))
    _, vectors = np.linalg.eigh(covariance)
    components = vectors[:, ::-1][:, :COMPONENTS].T
    # eigh leaves the sign open; fixing it keeps channels comparable between fits.
    largest = np.abs(components).argmax(axis=1)
    return centre, components * np.sign(components[np.arange(len(components)), largest])[:, None]


@dataclass(frozen=True)
class Channels:
    """The fitted map from records to channels.

    Attributes:
        classes: Number of classes.
        centre: Mean embedding, (d,).
        components: Principal directions, (p, d) with p = min(8, d).
        mean: Of each channel on the reference, (c,); not a number of one that stays silent.
        scale: Standard deviation of each channel on the reference, (c,).
    """

    classes: int
    centre: Floats
    components: Floats
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, block: Block) -> "Channels":
        """Fit on usable reference rows.

        Raises:
            ValueError: Fewer than two rows.
        """
        if len(block) < 2:
            raise ValueError(f"expected at least 2 reference rows, got {len(block)}")
        stayed = block[block["exit"] == 0]
        silent = len(stayed) < min(LEAST_STAYED, len(block))
        # What is never looked at needs no directions of its own.
        centre, components = _axes((block if silent else stayed)["embedding"].astype(np.float64))
        classes = block["logits"].shape[1]
        unit = cls(classes, centre, components, np.zeros(1), np.ones(1))
        mean, deviation = moments(unit._raw(block))
        if silent:
            mean[_FIRST_EMBEDDED : _FIRST_EMBEDDED + len(components) + 1] = np.nan
        scale = np.maximum(deviation, np.maximum(_EPS * np.abs(mean), 1e-12))
        return cls(classes, centre, components, mean, scale)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the channels' names, in order."""
        return (
            "doubt",
            "entropy",
            *(f"embedding.{i}" for i in range(len(self.components))),
            "residual",
            "exit",
            *(f"input.{name}" for name in SUMMARY),
            *(f"class.{i}" for i in range(self.classes)),
        )

    def standardise(self, block: Block) -> Floats:
        """Return the channels of usable rows, clipped; (n, c); not a number where a channel says nothing."""
        standard = (self._raw(block) - self.mean) / self.scale
        return np.clip(standard, -CLIP, CLIP)

    def _raw(self, block: Block) -> Floats:
        logits = block["logits"].astype(np.float64)
        centred = block["embedding"].astype(np.float64) - self.centre
        scores = centred @ self.components.T
        over = np.maximum((centred**2).sum(axis=1) - (scores**2).sum(axis=1), 0.0)
        embedded = np.column_stack([scores, np.log(over + _EPS)])
        left = block["exit"][:, None] != 0
        predicted = logits.argmax(axis=1)[:, None] == np.arange(self.classes)
        parts = [doubt(logits), np.where(left, np.nan, embedded), left, block["summary"], predicted]
        return np.concatenate([part.astype(np.float64) for part in parts], axis=1)

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the fitted arrays."""
        return {
            "classes": np.array(self.classes),
            "centre": self.centre,
            "components": self.components,
            "mean": self.mean,
            "scale": self.scale,
        }

    @classmethod
    def restore(cls, state: Arrays) -> "Channels":
        """Take up a snapshot."""
        names = ("centre", "components", "mean", "scale")
        centre, components, mean, scale = (np.asarray(state[name], dtype=np.float64) for name in names)
        return cls(int(state["classes"]), centre, components, mean, scale)
