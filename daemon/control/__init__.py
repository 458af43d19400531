"""The control plane: the turn and everything it moves."""
