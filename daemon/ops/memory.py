"""Memory: what the allocator keeps of what was freed, and who goes first when the machine has none left.

A session of tens of megabytes is many blocks, freed in another order than they were made. glibc keeps them in
its heaps for the next one, and its heaps never fit quite: over hundreds of swaps the resident memory grows by
a tenth, and stays a third above what is used. ``give_back`` returns it.

* For a thread that nobody waits for: it takes 5 ms after a small model and 40 ms after one of 32 MB, without
  the interpreter's lock (``benchmarks/serving/memory.py`` shows what it is good for).
* Where the C library has no such call (musl), nothing is done.

``first_to_go`` is for whoever starts a search.

Source: malloc_trim(3).
"""

import ctypes
from pathlib import Path

_FIRST = 500
"""As the unit of searches by hand has it (OOMScoreAdjust): half of all memory counts as held besides."""


def give_back() -> bool:
    """Return the allocator's free pages to the machine; tell whether the C library can."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        return False
    library.malloc_trim(ctypes.c_size_t(0))
    return True


def first_to_go(pid: int) -> str:
    """Let the kernel end a process before others when memory runs out; return what came of it.

    For a worker that can be started again, so that neither who started it nor the data plane has to go. It
    takes no privilege, and what a process starts inherits it.

    Source: proc_pid_oom_score_adj(5).
    """
    try:
        with Path(f"/proc/{pid}/oom_score_adj").open("r+") as file:
            file.write(str(_FIRST))
    except OSError as error:
        return f"memory: {pid} goes when any other would ({error.strerror})"
    return f"memory: {pid} goes first"
