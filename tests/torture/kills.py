"""Kills at random moments: no trial may be lost or doubled, and the front stays the same.

``python -m tests.torture.kills --count 30 --seed 0`` searches a tiny space again and again. It
sends SIGKILL at random moments, from the first import to the last file, types the command again,
and compares what comes out with an uninterrupted search, byte by byte.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from epim_nas.pipeline.folder import RunFolder
from tests.pipeline.command import outcome_of
from tests.pipeline.tiny import write_run
from tests.torture import commands


def torture(count: int, seed: int, work: Path, finished: Path | None = None) -> Counter[str]:
    """Kill searches so many times.

    Args:
        count: kills.
        seed: seed of the moments.
        work: a folder for everything.
        finished: the uninterrupted search, where it is there already.

    Returns:
        How many kills and ended searches there were, and how often something was wrong.
    """
    rng, counts = random.Random(seed), Counter[str]()
    run, folder = write_run(work), work / "killed"
    arguments = ["--quiet", "search", run, "--out", folder]
    if finished is None:
        finished = work / "finished"
        whole = commands.run([*arguments[:-1], finished], work / "stdout")
        assert whole.process.exitcode == 0, whole.stderr
    expected = commands.result_of(finished)
    seconds = sum(RunFolder(finished).stored_seconds().values())
    stored: list[object] = []
    while counts["kills"] < count:
        command = commands.start(arguments, work / "stdout")
        command.process.join(rng.uniform(0, seconds))
        if command.process.is_alive():
            command.kill()
            counts["kills"] += 1
            stored = _look(folder, stored, counts)
        else:
            stored = _end(command, folder, expected, counts)
    last = commands.start(arguments, work / "stdout")
    last.wait()
    _end(last, folder, expected, counts)
    return counts


def _look(folder: Path, before: list[object], counts: Counter[str]) -> list[object]:
    """The trials after a kill, which have to be those before and more."""
    journal = folder / "study.journal"
    if not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        return before
    after: list[object] = list(outcome_of(folder))
    counts["lost"] += sum(trial not in after for trial in before)
    counts["doubled"] += sum(after.count(trial) > 1 for trial in after)
    return after


def _end(
    command: commands.Command, folder: Path, expected: object, counts: Counter[str]
) -> list[object]:
    """Compare a search that came to its end, and begin again."""
    counts["searches"] += 1
    if command.process.exitcode != 0:
        counts["errors"] += 1
        print(command.stderr, file=sys.stderr)
    elif commands.result_of(folder) != expected:
        counts["other results"] += 1
    shutil.rmtree(folder)
    return []


WRONG = ("lost", "doubled", "errors", "other results")


def main() -> int:
    """Run from the command line; 1 where a kill cost anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=20, help="kills (20)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        counts = torture(given.count, given.seed, Path(work))
    wrong = ", ".join(f"{counts[name]} {name}" for name in WRONG)
    print(
        f"kills: seed {given.seed}, {counts['kills']} kills in {counts['searches']} searches: "
        f"{wrong}"
    )
    return int(any(counts[name] for name in WRONG))


if __name__ == "__main__":
    sys.exit(main())
