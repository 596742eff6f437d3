"""Several processes that train one network, each on its part of every batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Parallel:
    """A process among those of torch's default process group.

    Gradients are averaged in one sum over all of them. What is summed comes out the same in every
    process, so their weights stay equal.

    Attributes:
        rank: number of this process.
        size: how many processes there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Parallel:
        """This process, in the group that was set up; alone where none was."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of a number over the processes; not finite where it is so in any of them."""
        if self.size == 1:
            return value
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total) / self.size

    @torch.no_grad()
    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.size == 1:
            return
        # A parameter without a gradient here has none in the other processes: all run one graph.
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def broadcast(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                distributed.broadcast(tensor.data, 0)


ALONE = Parallel()
"""The only process."""
