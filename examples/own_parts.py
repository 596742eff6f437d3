"""Parts of one's own: two objectives, a cost, choices of layers, and an executor.

`own_parts.yaml` lists this module under `extensions` and names what it registers. Start it in this
folder:

    epim-nas search own_parts.yaml
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import nn

from epim_nas import Chip, Choice, Design, EpitomeShape, LayerSpec, Network
from epim_nas.cluster.executor import Executor, Factory, Outcome
from epim_nas.data.base import Data
from epim_nas.extensions import register_choices, register_executor, register_metric

WRITE_NS = 100.0
"""Time to write one row of cells; a number of this example."""
LINK_NS = 20.0
"""Time that each tile adds for the way through the chip; likewise."""


def programming_ms(design: Design, network: Network, totals: Mapping[str, float]) -> float:
    """Time to program the chip row by row, if a tile writes one row of one crossbar at a time."""
    return 64 * totals["crossbars"] / totals["tiles"] * WRITE_NS * 1e-6


def noisy_accuracy(model: nn.Module, data: Data) -> float:
    """Top-1 on 128 search-validation images with noise on them."""
    generator = torch.Generator().manual_seed(0)
    right = count = 0
    for images, labels in data.batches("validation", 128, 128):
        noise = torch.randn(images.shape, generator=generator)
        device = next(model.parameters()).device
        predicted = model((images + 0.5 * noise).to(device)).argmax(dim=1).cpu()
        right += int((predicted == labels).sum())
        count += len(labels)
    return right / count


def with_links(design: Design, network: Network, totals: Mapping[str, float]) -> float:
    """The package's latency (ns) and the way between tiles."""
    return totals["latency_ns"] + LINK_NS * totals["tiles"]


def halves(layer: LayerSpec, chip: Chip | None) -> Iterator[Choice]:
    """Half of the output channels, wrapped, at two precisions."""
    out_channels, in_channels, height, width = layer.weight_shape
    if out_channels % 2 == 0:
        for bits in (3, 5):
            shape = EpitomeShape(out_channels // 2, in_channels, height, width)
            yield Choice(shape, wrap=True, weight_bits=bits, activation_bits=9)


class Threads(Executor):
    """Scores one design at a time in another thread, so that proposing does not wait for it."""

    def __init__(self, factory: Factory) -> None:
        self._worker = factory()
        self._pool = ThreadPoolExecutor(1)
        self._running: dict[Future[Any], tuple[Hashable, float]] = {}

    @property
    def capacity(self) -> int:
        """One design is scored, and the next one is ready."""
        return 2

    def submit(self, key: Hashable, method: str, *args: Any) -> None:
        """Hand a call to the thread."""
        future = self._pool.submit(getattr(self._worker, method), *args)
        self._running[future] = (key, time.monotonic())

    def wait(self) -> Outcome:
        """The next call that ends."""
        done = wait(self._running, return_when=FIRST_COMPLETED).done.pop()
        key, started = self._running.pop(done)
        seconds = time.monotonic() - started
        error = done.exception()
        if error is not None:
            return Outcome(key, error=str(error), seconds=seconds)
        return Outcome(key, done.result(), seconds=seconds)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)


register_metric("programming_ms", programming_ms, "time to program the chip (ms)")
register_metric(
    "noisy_accuracy", noisy_accuracy, "top-1 on noisy images", maximise=True, measured=True
)
register_metric("latency_ns", with_links)
register_choices("halves", halves)
register_executor("threads", lambda factory, config: Threads(factory))
