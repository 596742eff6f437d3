"""What reading a run folder imports, and what is said before."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from epim_nas.cli.app import run_command
from epim_nas.cluster.registry import EXECUTORS
from epim_nas.solver.metrics import METRICS
from tests.pipeline.tiny import write_run

PARTS = """
from pathlib import Path
(Path(__file__).parent / "imported").touch()
from epim_nas.cluster.executor import LocalExecutor
from epim_nas.extensions import register_executor, register_metric
register_executor("mine", lambda factory, config: LocalExecutor(factory))
METRIC
"""
NET = """
from pathlib import Path
(Path(__file__).parent / "imported").touch()
from tests.pipeline.tiny import tiny_net
"""
OWN = {
    "an executor": "",
    "a cost": 'register_metric("energy_nj", lambda *given: given[-1]["crossbars"], "my energy")',
    "an objective": 'register_metric("mine", lambda *given: given[-1]["crossbars"], "my own")',
}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run a command as a new process would: nothing of a user is imported or registered yet."""
    tables: list[dict] = [METRICS, EXECUTORS]
    before = [dict(table) for table in tables]

    def forget() -> None:
        for name in ("my_parts", "my_net"):
            sys.modules.pop(name, None)
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)

    def run(*arguments: str) -> tuple[int, str, str]:
        forget()
        capsys.readouterr()
        code = run_command(list(arguments))
        said = capsys.readouterr()
        forget()
        return code, said.out, said.err

    yield run
    forget()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a module registers -> the folder of a search that has used it."""
    return {}


@pytest.fixture(params=list(OWN))
def own(
    request: pytest.FixtureRequest, searched: dict[str, Path], command: Command,
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, Path]:  # fmt: skip
    """What a module registers, and the folder in which a search has used it, the current one."""
    kind = request.param
    folder = searched.setdefault(kind, tmp_path_factory.mktemp("stored"))
    monkeypatch.chdir(folder)
    if not (folder / "run").exists():
        (folder / "my_parts.py").write_text(PARTS.replace("METRIC", OWN[kind]))
        (folder / "my_net.py").write_text(NET)
        more = ["mine"] if kind == "an objective" else []
        write_run(
            folder, extensions=["my_parts"], executor={"kind": "mine"}, search__trials=3,
            finalists__count=1, objectives=["accuracy", "latency_ns", *more],
            model={"name": "my_net:tiny_net"},
        )  # fmt: skip
        code, _, said = command("search", "tiny.yaml", "--out", "run")
        assert code == 0, said
        assert "runs its code" not in said, "who types the run file knows what it names"
    (folder / "imported").unlink(missing_ok=True)
    return kind, folder


@pytest.mark.parametrize(
    "typed",
    [
        ("pareto", "run", "--json"), ("report", "run", "--to", "md"),
        ("export", "run", "--to", "design", "--select", "best-accuracy", "--out", "exported"),
    ],
    ids=lambda typed: typed[0],
)  # fmt: skip
def test_only_metrics_of_a_module_need_it(
    own: tuple[str, Path], typed: tuple[str, ...], command: Command
) -> None:
    kind, folder = own
    code, out, said = command(*typed)
    assert code == 0, said
    needed = kind != "an executor"
    assert (folder / "imported").exists() == needed
    assert said.count("names the module `my_parts`") == needed, "it is said, once"
    assert not needed or str(folder / "my_parts.py") in said
    if typed[0] == "report":
        assert ("my e" in out) == (kind == "a cost")
    if typed[0] == "pareto":
        designs = json.loads(out)["designs"]
        assert all(("mine" in d["metrics"]) == (kind == "an objective") for d in designs)


def test_exported_weights_build_the_network_and_say_so(
    own: tuple[str, Path], command: Command
) -> None:
    _, folder = own
    best = yaml.safe_load((folder / "run/best.yaml").read_text())["provenance"]["trial"]
    typed = ("--select", str(best), "--weights", f"run/finalists/trial-{best:04d}.safetensors")
    code, _, said = command("export", "run", "--to", "weights", *typed, "--out", "weights")
    assert code == 0, said
    assert said.count("names the module `my_net`") == 1
    assert (folder / "imported").exists()


def test_a_module_that_is_gone_is_missed_where_it_is_needed(
    own: tuple[str, Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, folder = own
    monkeypatch.chdir(tmp_path)
    code, _, said = command("pareto", str(folder / "run"), "--json")
    assert code == (0 if kind == "an executor" else 2), said
    assert ("there is no module `my_parts`" in said) == (kind != "an executor")


def test_folders_that_are_only_looked_at_import_nothing(
    own: tuple[str, Path], command: Command
) -> None:
    """The dashboard, and a folder that holds another run."""
    _, folder = own
    events = folder / "run/tensorboard"
    hidden = events.rename(folder / "run/hidden")
    _, _, said = command("dashboard", "run")
    hidden.rename(events)
    assert "no TensorBoard events" in said
    other = yaml.safe_load((folder / "tiny.yaml").read_text())
    other |= {"extensions": [], "executor": {}, "objectives": ["accuracy"]}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    code, _, said = command("search", "other.yaml", "--out", "run")
    assert code == 2
    assert "`extensions`" in said
    assert not (folder / "imported").exists()
