"""The process group of a training on several workers, which listens where Ray does."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig

_SECONDS = 1800
"""How long an operation of the group may take; Ray's default."""
_TorchBackend: Any = TorchConfig().backend_cls


class GroupConfig(TorchConfig):
    """Ray's configuration of a group, whose workers meet at the address of the first one's node.

    Ray lets them meet at a port that torch opens on all interfaces, and that asks for no token.
    """

    @property
    def backend_cls(self) -> type:
        """What sets the group up."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set the group up in all workers."""
        host, port = worker_group.execute_single(0, _listen)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, host, port, rank, len(worker_group), backend_config.backend
                )
                for rank in range(len(worker_group))
            ]
        )


_listening: list[socket.socket] = []
"""In the first worker: the socket of the store, until the store has it."""


def _listen() -> tuple[str, int]:
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    _listening[:] = [server]
    return host, int(server.getsockname()[1])


def _join(host: str, port: int, rank: int, size: int, backend: str) -> None:
    from torch.distributed import TCPStore, init_process_group

    if ipaddress.ip_address(host).is_loopback:  # all workers are on this machine
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    wait = timedelta(seconds=_SECONDS)
    served = _listening.pop().detach() if rank == 0 else None
    store = TCPStore(host, port, size, is_master=rank == 0, timeout=wait, master_listen_fd=served)
    init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
