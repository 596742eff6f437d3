"""Which TCP sockets processes listen on."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

import ray  # noqa: F401  # brings psutil

import psutil  # isort: skip


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Address and port of every TCP socket that a process listens on."""
    try:
        found = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN]


def of_this_and_its_children() -> dict[int, list[tuple[str, int]]]:
    """Process -> what it listens on, for this process and all that come from it."""
    me = psutil.Process()
    return {p.pid: found for p in (me, *me.children(recursive=True)) if (found := listening(p))}


def on_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def note_in_group(folder: Path) -> None:
    """What a training's worker listens on while its group works, as a file."""
    import torch
    from torch import distributed

    total = torch.ones(1)
    distributed.all_reduce(total)
    seen = {"sum": total.item(), "listening": listening(psutil.Process())}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(seen))
    distributed.barrier()
