from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples in every run of the tests. `make torture` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Ray gives its processes a low priority: beside other tests they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The command sets up the package's log; other tests want it as it was."""
    logger = logging.getLogger("epim_nas")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagate, handlers


_LONG = ("tests/cluster/", "tests/launch/", "tests/pipeline/", "tests/study/")
"""Folders of modules with few tests that take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, so that two processes end at about the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
