"""Loading: a session of exactly the bytes that were hashed, beside a loop that answers requests.

* The file is copied, piece by piece, into memory that has no name, hashed on the way, and sealed: nobody can
  change it between the look and the use, whatever happens to the file.
* The runtime reads that memory by its descriptor. Given Python bytes it would hold the interpreter's lock
  while it copies and parses them: with a 32 MB model the slowest answer in a hundred took 3.8 ms beside a
  load that way, 0.4 ms this way (``benchmarks/serving/swap.py``).

Called by ``slot.py`` in the build's thread.
"""

import contextlib
import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from daemon.serving.refusals import BundleRefused

# The runtime would report its use to its maker.
ort.disable_telemetry_events()

PIECE_BYTES = 256 << 10
SWITCH_S = 0.0005
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# The runtime raises its own classes, which share no base below Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoModel,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    ort_state.EPFail,
    ort_state.NotFound,
    ort_state.EngineError,
    ort_state.ModelLoaded,
    ort_state.ModelLoadCanceled,
    ort_state.ModelRequiresCompilation,
    ort_state.DeviceReset,
    RuntimeError,
    MemoryError,
)


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Let no thread keep the interpreter for long, while a bundle is built beside the loop.

    Not for ever: threads that answer gRPC calls cost a tenth more when they take turns so often.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def sealed(path: Path, digest: str) -> Iterator[int]:
    """Give a descriptor of sealed memory that holds a file's bytes.

    Raises:
        BundleRefused: The file cannot be read, its bytes are of another digest, or there is no memory.
    """
    with _memory() as memory:
        try:
            came = _copy(path, memory)
        except OSError as error:
            raise BundleRefused(
                f"expected the bundle {digest} at {path}, got {error}; stage it again"
            ) from error
        if came != digest:
            raise BundleRefused(
                f"expected bytes of {digest} at {path}, got {came}; the file was altered, fetch it again"
            )
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        yield memory


@contextlib.contextmanager
def held(raw: bytes) -> Iterator[int]:
    """Give a descriptor of sealed memory that holds these bytes.

    Raises:
        BundleRefused: There is no memory for them.
    """
    with _memory() as memory:
        view = memoryview(raw)
        try:
            while view:
                view = view[os.write(memory, view[:PIECE_BYTES]) :]
        except OSError as error:
            raise BundleRefused(f"expected memory for {len(raw)} bytes of a bundle, got {error}") from error
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        yield memory


def session(memory: int, digest: str) -> Any:
    """Return the runtime's session of what a descriptor holds: one thread, no telemetry.

    Raises:
        BundleRefused: It is no model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(f"/proc/self/fd/{memory}", options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise BundleRefused(f"expected an ONNX model in {digest}, the runtime says: {error}") from error


def whole(memory: int) -> bytes:
    """Return all that a descriptor holds."""
    return os.pread(memory, os.fstat(memory).st_size, 0)


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    try:
        memory = os.memfd_create("bundle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise BundleRefused(
            f"expected memory that can be sealed (memfd_create), got {error}; are descriptors left?"
        ) from error
    try:
        yield memory
    finally:
        os.close(memory)


def _copy(path: Path, memory: int) -> str:
    """Copy a file and return the digest of what was copied."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            sha.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(memory, view) :]
    return f"sha256:{sha.hexdigest()}"
