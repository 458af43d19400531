"""The daemon among its machine: systemd, logs, metrics, clock jumps."""
