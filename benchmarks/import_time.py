"""How much ``import epim_nas`` costs, as a ratio to ``import numpy`` in the same run.

Every import is timed in fresh interpreters, in turn, so that a change of the machine's speed meets
all alike; the fastest of several rounds counts, less that of an empty interpreter.

    python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
import time

MODULES = ("numpy", "epim_nas", "epim_nas.hardware", "epim_nas.cli", "torch")
ROUNDS = 7


def seconds(statement: str) -> float:
    """Wall time of an interpreter that runs one statement."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    empty: list[float] = []
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(ROUNDS):
        empty.append(seconds("pass"))
        for module, found in times.items():
            found.append(seconds(f"import {module}"))
    base = min(empty)
    cost = {module: min(found) - base for module, found in times.items()}
    print(f"{'import':<20} relative to numpy (fastest of {ROUNDS})")
    for module, spent in cost.items():
        print(f"{module:<20} {spent / cost['numpy']:.2f}")


if __name__ == "__main__":
    main()
