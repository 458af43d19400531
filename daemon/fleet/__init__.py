"""Devices: other hosts that serve, joined to one control plane by mutual TLS."""
