"""A search with a cheap measurement, to be killed: ``python -m tests.study.kills FOLDER TRIALS``.

The number of workers is the third argument, 1 by default.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import optuna

from epim_nas.study.storage import open_journal
from tests.pipeline.test_trials import search
from tests.solver.problems import make_problem


def problem():
    """What is searched."""
    return make_problem(groups=6, choices=8, slack=12)


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """What a reader finds; a last line that is torn is not there yet."""
    journal = folder / "study.journal"
    if not journal.exists():
        return []
    copy = folder / "copy.journal"
    content = journal.read_bytes()
    copy.write_bytes(content[: content.rfind(b"\n") + 1])
    try:
        study = optuna.load_study(study_name="epim_nas", storage=open_journal(copy))
    except KeyError:
        return []  # killed before the study was made
    return study.get_trials(deepcopy=False)


if __name__ == "__main__":
    folder, trials, capacity = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    search(folder, problem(), "epitome", trials, capacity=capacity,
           before_call=lambda calls: time.sleep(0.02))  # fmt: skip
