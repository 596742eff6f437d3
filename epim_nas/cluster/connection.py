"""Connecting to a Ray cluster, or starting Ray here; what can go wrong is said at once."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from epim_nas.cluster.executor import one_line
from epim_nas.errors import InputError, missing_extra

_SECONDS = 5.0
"""How long the head's port may take to answer; Ray itself would try for more than a minute."""
_FIELD = "executor.address"

log = logging.getLogger(__name__)


@contextmanager
def connected(address: str | None, purpose: str, cpus: float = 1) -> Iterator[Any]:
    """Ray, connected to a cluster; what was connected here is disconnected at the end.

    Args:
        address: ``HOST:PORT``, ``auto``, or None for ``RAY_ADDRESS`` or a start on this machine.
        purpose: what Ray is needed for, in words.
        cpus: cores that a start on this machine has to offer.

    Raises:
        InputError: see :func:`connect`.
    """
    ray, mine = connect(address, purpose, cpus)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def connect(address: str | None, purpose: str, cpus: float = 1) -> tuple[Any, bool]:
    """The ``ray`` module, connected to a cluster, and whether it was connected here.

    With no address, and none in ``RAY_ADDRESS``, Ray is started on this machine, listening on
    loopback, with a token of its own.

    Raises:
        InputError: Ray is not installed; the cluster cannot be reached, runs another version, or
            asks for a token that is missing or wrong.
        KeyboardInterrupt: a signal came while Ray started.
    """
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", purpose) from None
    if ray.is_initialized():
        return ray, False
    probe(address, purpose)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        options["address"] = address
    else:
        options |= {
            "address": "local",  # not another cluster that happens to run here
            "num_cpus": max(os.cpu_count() or 1, int(cpus + 0.999)),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        with own_signals(), nullcontext() if address else _on_loopback():
            _read_token_again()
            ray.init(**options)
    except Exception as error:
        raise _explained(ray, address, error) from None
    if not address:
        _check_loopback(ray)
    return ray, True


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the Ray that starts in the block listen on loopback alone, and ask for a new token.

    Ray replaces 127.0.0.1 by an address that other machines reach, and then listens on all
    interfaces. It leaves it where it is told that it is to form no cluster, which is its default on
    macOS and Windows, and binds everything to it. The token keeps out other users of this machine;
    Ray's own would be in a file that they can read.
    """
    from ray._private import ray_constants

    asked = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # for the processes that Ray starts
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    kept = {name: os.environ.get(name) for name in asked}
    cluster = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(asked)
    ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read_token_again() -> None:
    """Let Ray read again what the environment says about its token; it keeps what it read once."""
    raylet: Any = importlib.import_module("ray._raylet")
    loader = getattr(raylet, "AuthenticationTokenLoader", None)
    if loader is not None:  # not a version without tokens
        raylet.Config.initialize("")
        loader.instance().reset_cache()


def _check_loopback(ray: Any) -> None:
    """Say so if a version of Ray listens elsewhere all the same."""
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        log.warning(
            "Ray %s listens on %s, not on loopback alone: other machines can reach it",
            ray.__version__, address,
        )  # fmt: skip


@contextmanager
def own_signals() -> Iterator[None]:
    """Let a signal interrupt the block as elsewhere, and keep this process's handlers.

    Ray's handlers of SIGINT, while it trains, and of SIGTERM, while it starts, end the process by
    ``sys.exit``: with exit code 0 or 1, as if everything were done or something were wrong, and
    what this process would save is lost. They stay for good.

    Raises:
        KeyboardInterrupt: in place of that exit.
    """
    in_main = threading.current_thread() is threading.main_thread()
    kept = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if in_main:  # elsewhere neither Ray nor this may set one
            for kind, handler in kept.items():
                if handler is not None:  # set by a program that Python is embedded in
                    signal.signal(kind, handler)


def probe(address: str | None, purpose: str) -> None:
    """Check, within seconds and without starting Ray, what :func:`connect` will need.

    A search connects when its network is trained, which may be hours later. Which cluster ``auto``
    means, only Ray knows: of it nothing is checked.

    Args:
        address: as of :func:`connect`.
        purpose: what Ray is needed for, in words.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("ray", "ray", purpose)
    address = address or os.environ.get("RAY_ADDRESS")
    loaded = sys.modules.get("ray")
    if address and not (loaded is not None and loaded.is_initialized()):
        _check_port(address)


def _check_port(address: str) -> None:
    """Check that something answers at the address of a cluster's head.

    Raises:
        InputError: not an address, or nothing answers.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or host.startswith("http"):
        raise InputError(
            _FIELD,
            f"`{address}` is not the address of a Ray cluster",
            "`HOST:PORT` of its head (6379 by default), `ray://HOST:PORT`, or `auto`",
            "`ray start --head` prints it. To submit a job to a dashboard (http://...), use "
            "`epim-nas launch --on ray`.",
        )
    refused = refusal(host, int(port))
    if refused:
        raise InputError(
            _FIELD,
            f"no Ray cluster answers at {address} ({refused})",
            hint="Check the address and that the head runs (`ray status`), or leave it out, and "
            "RAY_ADDRESS unset, to use this machine.",
        )


def refusal(host: str, port: int) -> str:
    """Why nothing answers at an address, in one line; empty where something does."""
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        return one_line(error)
    return ""


def wrong_token(address: str | None) -> InputError:
    """The error of a client whose token is missing or wrong."""
    return InputError(
        "RAY_AUTH_TOKEN",
        f"the Ray cluster at {address} asks for a token, and this one is missing or wrong",
        "the token of the cluster",
        "Copy ~/.ray/auth_token from its head, or name the file in RAY_AUTH_TOKEN_PATH, and "
        "set RAY_AUTH_MODE=token.",
    )


def _explained(ray: Any, address: str | None, error: Exception) -> InputError:
    """The user's error behind one of Ray's."""
    text = one_line(error)
    if isinstance(error, getattr(ray.exceptions, "AuthenticationError", ())):
        return wrong_token(address)
    if "ersion mismatch" in str(error):
        return InputError(
            _FIELD,
            f"the Ray cluster at {address} runs other versions ({_versions(str(error))})",
            "the same version of Ray and of Python on all machines",
            f"Install ray=={ray.__version__} there, or the cluster's version here.",
        )
    return InputError(
        _FIELD,
        f"no Ray cluster could be reached at {address or 'this machine'} ({text})",
        hint="Check the address, the cluster's Ray version and its token (RAY_AUTH_MODE, "
        "RAY_AUTH_TOKEN_PATH); without an address Ray is started on this machine.",
    )


def _versions(text: str) -> str:
    """The lines of Ray's message that say which versions it has seen, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(line for line in lines if "Ray:" in line or "Python:" in line) or lines[0]


def fitting(nodes: list[Mapping[str, Any]], cpus: float, gpus: float) -> int:
    """How many workers fit on the living nodes of a cluster at the same time.

    Args:
        nodes: what ``ray.nodes()`` says.
        cpus: CPU cores of a worker.
        gpus: GPUs of a worker; a fraction shares one.
    """
    count = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            shares = [has.get("CPU", 0.0) / cpus] if cpus else []
            shares += [has.get("GPU", 0.0) / gpus] if gpus else []
            count += int(min(shares) + 1e-9) if shares else 0
    return count
