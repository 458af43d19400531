"""The data plane: serves the deployed bundle, swaps it without losing a request, and records what it saw."""
