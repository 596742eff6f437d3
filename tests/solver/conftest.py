"""The search problem of these tests."""

from __future__ import annotations

import pytest

from epim_nas.solver.problem import SearchProblem
from tests.report.conftest import make_result, network, result
from tests.solver.problems import make_problem

__all__ = ["make_result", "network", "problem", "result"]


@pytest.fixture
def problem() -> SearchProblem:
    return make_problem()
