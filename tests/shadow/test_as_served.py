"""A newcomer with an early exit answers in shadow as it would answer clients."""

from types import SimpleNamespace

import numpy as np

from daemon.shadow.__main__ import AsServed


class Slot:
    """Tells with which confidence it was asked."""

    def answer(self, x, confidence):
        return np.full((len(x), 2), confidence, np.float32), np.zeros((len(x), 3), np.float32), None


def test_the_policys_confidence_is_what_a_shadow_runs_with():
    x = np.zeros((1, 4), np.float32)
    logits, embedding = AsServed(SimpleNamespace(answer=Slot().answer), 0.75).run(x)
    assert logits.tolist() == [[0.75, 0.75]]
    assert embedding.shape == (1, 3)
