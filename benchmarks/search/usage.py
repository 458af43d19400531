"""Run a command and say what it used: CPU-seconds and peak resident memory of it and its children.

    python -m benchmarks.search.usage COMMAND ...

A process of its own, which loads nothing: the kernel counts to a child's peak what its parent held when it
started the child, so a large parent would be measured instead. What the command prints goes to standard
error; the last line on standard output is a JSON object. Ends as the command does.
"""

import json
import resource
import subprocess
import sys
import time


def main(command: list[str]) -> int:
    """Run the command and print the record."""
    began = time.monotonic()
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = {
        "code": code,
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "wall_s": round(time.monotonic() - began, 3),
        "peak_bytes": used.ru_maxrss * 1024,
    }
    print(json.dumps(record), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
