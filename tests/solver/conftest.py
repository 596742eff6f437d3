"""The search problem of these tests."""

from __future__ import annotations

import pytest

from epim_nas.solver.problem import SearchProblem
from tests.solver.problems import make_problem


@pytest.fixture
def problem() -> SearchProblem:
    return make_problem()
