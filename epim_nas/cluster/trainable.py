"""What Ray Tune runs: a method of a worker, in parts between which it may be stopped."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from epim_nas.cluster.sharing import Shared, restore
from epim_nas.cluster.visibility import check_visible


class StepwiseTrainable(tune.Trainable):
    """Calls ``worker.METHOD(*arguments, until=STEPS)`` again and again, with more and more steps.

    The method keeps its state in a file of its own, so that there is nothing to store here but the
    number of parts. Actors are reused: the worker is loaded once.
    """

    def setup(
        self, config: dict[str, Any], shared: Shared, method: str, steps: list[int], marker: Path
    ) -> None:
        """Load the worker."""
        check_visible(marker)
        self._method = getattr(restore(shared), method)
        self._steps = steps
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial."""
        self._arguments = new_config["job"]["arguments"]
        self._part = 0
        return True

    def step(self) -> dict[str, Any]:
        """Train one more part, and measure."""
        until = self._steps[self._part]
        result = self._method(*self._arguments, until=until)
        self._part += 1
        return {
            "accuracy": result.validation_accuracy,
            "result": asdict(result),
            "done": self._part == len(self._steps),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """How many parts are done."""
        return {"part": self._part}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after so many parts."""
        self._part = int(checkpoint["part"])
