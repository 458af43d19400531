"""The demo: one machine, the whole loop, told as a story; it drives the daemon from outside."""

from daemon.console.demo.command import demo

__all__ = ["demo"]
