"""What this device is: read from the kernel, for people and beside timings."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from daemon.fleet.terms import Hardware

_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def hardware() -> Hardware:
    """Return this device's hardware."""
    info = _fields(Path("/proc/cpuinfo"))
    # ARM kernels name no model: the board does (Device Tree).
    board = _text(Path("/proc/device-tree/model"))
    processor = info.get("model name") or info.get("Hardware") or board or platform.machine()
    khz = _text(_CPU / "cpuinfo_max_freq")
    mhz = float(khz) / 1000 if khz and khz.isdigit() else _number(info.get("cpu MHz"))
    memory = _fields(Path("/proc/meminfo")).get("MemTotal", "1 kB").split()[0]
    return Hardware(
        processor=processor[:200],
        cores=len(os.sched_getaffinity(0)),
        mhz=mhz,
        memory_bytes=int(memory) * 1024,
        governor=_text(_CPU / "scaling_governor"),
        runtime=f"onnxruntime {version('onnxruntime')}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}"[:120],
    )


def _fields(path: Path) -> dict[str, str]:
    """Return the first value of each ``key: value`` line."""
    found: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
