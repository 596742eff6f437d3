"""The full training of a design of the tiny network, as short as it can be."""

from __future__ import annotations

from pathlib import Path

from epim_nas.pipeline.finetune.finetune import finetune_design

EPOCHS = 3
SET = ["finetune.batch_size=50", "finetune.ema=0.9"]


def tune(finished: Path, out: Path, *overrides: str, **options) -> dict:
    """Train the best design of a finished search; ``options`` are those of `finetune_design`."""
    return finetune_design(
        finished / "best.yaml", str(finished / "run.yaml"), options={"epochs": EPOCHS},
        out=out, overrides=[*SET, *overrides], **options,
    )  # fmt: skip
