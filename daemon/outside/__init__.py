"""Telemetry that other servers' clients bring: read, checked whole, spooled durably, once."""
