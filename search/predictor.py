"""A guess of accuracy from genes: an ensemble of ridge regressions on bootstrapped measurements.

It chooses what to measure next; it never chooses a winner. Closed form, because refitting costs
milliseconds, where a grid search over kernels costs seconds and ranks no better.
"""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
Values = NDArray[np.float64]

_MEMBERS = 8
_PENALTY = 1.0


class Predictor:
    """Fitted once; ask as often as you like.

    Args:
        features: (n, f) of measured genomes.
        values: (n,) their measured accuracy.
        rng: For the bootstrap.
    """

    def __init__(self, features: Features, values: Values, rng: np.random.Generator) -> None:
        self._centre = features.mean(axis=0)
        x = features - self._centre
        members = []
        for _ in range(_MEMBERS):
            rows = rng.integers(0, len(x), len(x))
            mean = values[rows].mean()
            members.append((ridge(x[rows], values[rows] - mean, _PENALTY), mean))
        self._weights = np.stack([weights for weights, _ in members])
        self._means = np.array([mean for _, mean in members])

    def predict(self, features: Features) -> tuple[Values, Values]:
        """Return mean and standard deviation over the ensemble; each (n,)."""
        guesses = (features - self._centre) @ self._weights.T + self._means
        return guesses.mean(axis=1), guesses.std(axis=1)


def ridge(x: Features, y: Values, penalty: float) -> Values:
    """Return the weights (f,) of a ridge regression without intercept.

    >>> ridge(np.array([[1.0], [2.0]]), np.array([1.0, 2.0]), penalty=5.0).tolist()
    [0.5]
    """
    gram = x.T @ x + penalty * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ y))
