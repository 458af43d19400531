"""Label-free channels: what a record says of its input, as standardised scalars.

Called by the drift monitor. Fitted once on reference rows, then fixed.

* Confidence and entropy of the softmax, as logarithms: on a probability scale nearly all rows sit at 1 and
  the rest make a long tail, which costs a detector its threshold.
* The embedding's first principal components, and the logarithm of what they leave over: the residual shows
  inputs that leave the space which the reference spans.
* The five numbers of the input summary, and an indicator for each class predicted.
* Values are clipped at ``CLIP`` standard deviations: no single broken row can raise an alarm.
* A channel that never varied on the reference stays in: any change of it is out of the reference's range.

It knows no threshold and no time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitors.contract import Arrays, Floats
from monitors.spool import Block
from policies.telemetry import OUTCOMES

CLIP = 5.0
COMPONENTS = 8
SUMMARY = ("mean", "std", "min", "max", "edges")

_OK = OUTCOMES.index("ok")
_EPS = 1e-6


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


@dataclass(frozen=True)
class Channels:
    """The fitted map from records to channels.

    Attributes:
        classes: Number of classes.
        centre: Mean embedding, (d,).
        components: Principal directions, (p, d) with p = min(8, d).
        mean: Of each channel on the reference, (c,).
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
        embedding = block["embedding"].astype(np.float64)
        centre = embedding.mean(axis=0)
        covariance = np.atleast_2d(np.cov(embedding - centre, rowvar=False))
        _, vectors = np.linalg.eigh(covariance)
        components = vectors[:, ::-1][:, :COMPONENTS].T
        # eigh leaves the sign open; fixing it keeps channels comparable between fits.
        largest = np.abs(components).argmax(axis=1)
        components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
        classes = block["logits"].shape[1]
        unit = cls(classes, centre, components, np.zeros(1), np.ones(1))
        raw = unit._raw(block)
        mean = raw.mean(axis=0)
        scale = np.maximum(raw.std(axis=0), np.maximum(_EPS * np.abs(mean), 1e-12))
        return cls(classes, centre, components, mean, scale)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the channels' names, in order."""
        return (
            "doubt",
            "entropy",
            *(f"embedding.{i}" for i in range(len(self.components))),
            "residual",
            *(f"input.{name}" for name in SUMMARY),
            *(f"class.{i}" for i in range(self.classes)),
        )

    def standardise(self, block: Block) -> Floats:
        """Return the channels of usable rows, clipped; (n, c)."""
        standard = (self._raw(block) - self.mean) / self.scale
        return np.clip(standard, -CLIP, CLIP)

    def _raw(self, block: Block) -> Floats:
        logits = block["logits"].astype(np.float64)
        centred = block["embedding"].astype(np.float64) - self.centre
        scores = centred @ self.components.T
        left = np.maximum((centred**2).sum(axis=1) - (scores**2).sum(axis=1), 0.0)
        predicted = logits.argmax(axis=1)[:, None] == np.arange(self.classes)
        parts = [doubt(logits), scores, np.log(left + _EPS)[:, None], block["summary"], predicted]
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
