"""Damage of stored files: no flipped bit or digit may lead to another result unnoticed.

``python -m tests.torture.bit_flips --count 100 --seed 0`` makes a tiny search, finished and
interrupted at several points. Then it flips one random bit or digit of one stored file at a time
and types the command again. What comes out has to be the result of the undamaged folder, or exit
code 2 and a message that names the file.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from epim_nas.export.weights import weights_digest
from epim_nas.stored import DIGESTS
from tests.pipeline.tiny import tiny_run, write_run
from tests.torture import commands
from tests.torture.commands import Command

PRODUCTS = {"front.csv", "front.png", "report.html", "best.yaml", "designs", "log.txt", ".lock"}
"""Of a run folder; they are written again and never read."""

TRIALS = tiny_run()["search"]["trials"]

IDENTICAL, WARNED, REFUSED = "identical", "warned, identical", "refused by name"
Arguments = list[object]


@dataclass(frozen=True)
class Case:
    """A folder to be damaged, and a command that reads it.

    Attributes:
        name: what is tried.
        folder: the undamaged folder.
        arguments: folder to damage, other folder -> the command line.
        result: command, folder to damage, other folder -> what was found.
        expected: of the undamaged folder.
    """

    name: str
    folder: Path
    arguments: Callable[[Path, Path], Arguments]
    result: Callable[[Command, Path, Path], Any]
    expected: Any

    def damaged(self, rng: random.Random, work: Path) -> tuple[str, str, str]:
        """Damage a copy: what was changed, what came of it, and what the command said."""
        folder, other = work / "damaged", work / "other"
        for path in (folder, other):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        file = pick(folder, rng)
        change = flip(file, rng)
        command = commands.run(self.arguments(folder, other), work / "stdout")
        outcome = self._outcome(command, file, folder, other)
        return f"{self.name}: {file.relative_to(folder)} {change}", outcome, command.stderr

    def _outcome(self, command: Command, file: Path, folder: Path, other: Path) -> str:
        code = command.process.exitcode
        name = file.name.removesuffix(".sha256") if file.parent.name == DIGESTS else file.name
        if code == 2 and name in command.stderr and "Traceback" not in command.stderr:
            return REFUSED
        if code != 0:
            return f"WRONG: exit code {code}"
        if self.result(command, folder, other) != self.expected:
            return "WRONG: another result, exit code 0"
        return WARNED if name in command.stderr else IDENTICAL


def pick(folder: Path, rng: random.Random) -> Path:
    """A stored file: every entry of the folder is as likely, however many files it has."""
    while True:
        entry = rng.choice(sorted(path for path in folder.iterdir() if path.name not in PRODUCTS))
        files = [entry] if entry.is_file() else sorted(p for p in entry.rglob("*") if p.is_file())
        full = [file for file in files if file.stat().st_size]
        if full:
            return rng.choice(full)


def flip(file: Path, rng: random.Random) -> str:
    """Change one bit, or one digit for another; returns what was done."""
    content = bytearray(file.read_bytes())
    digits = [at for at, byte in enumerate(content) if chr(byte).isdecimal() and byte < 128]
    if digits and rng.random() < 0.5:
        at = rng.choice(digits)
        content[at] = ord(rng.choice([d for d in "0123456789" if ord(d) != content[at]]))
    else:
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"at byte {at}"


CASES: dict[str, Callable[[Path, Path], Case]] = {
    "pareto": lambda work, finished: _pareto(work, finished),
    "finished": lambda work, finished: _search("finished", work, finished, finished),
    "in-supernet": lambda work, finished: _interrupted(
        "in-supernet", work, finished, lambda f: (f / "checkpoints/supernet.state").exists()
    ),
    "in-trials": lambda work, finished: _interrupted(
        "in-trials", work, finished, lambda f: commands.stored_trials(f) >= TRIALS // 2
    ),
    "in-finalists": lambda work, finished: _interrupted(
        "in-finalists", work, finished, lambda f: any((f / "finalists").glob("*.start.json"))
    ),
    "reuse": lambda work, finished: _reuse(work, finished),
    "in-finetuning": lambda work, finished: _finetuning(work, finished, done=False),
    "finetuned": lambda work, finished: _finetuning(work, finished, done=True),
}
"""Name -> (folder for everything, finished search) -> the case."""


def cases(
    work: Path, names: Iterable[str] = tuple(CASES), finished: Path | None = None
) -> list[Case]:
    """What is damaged; a finished run of :func:`~tests.pipeline.tiny.tiny_run` may be given."""
    run = write_run(work)
    if finished is None:
        finished = work / "finished"
        _done(["search", run, "--out", finished], work)
    return [CASES[name](work, finished) for name in names]


def _pareto(work: Path, finished: Path) -> Case:
    def pareto(folder: Path, other: Path) -> Arguments:
        return ["pareto", folder, "--json"]

    expected = _done(pareto(finished, work), work).stdout
    return Case("pareto", finished, pareto, lambda command, folder, other: command.stdout, expected)


def _search(name: str, work: Path, folder: Path, finished: Path) -> Case:
    def search(folder: Path, other: Path) -> Arguments:
        return ["--quiet", "search", work / "tiny.yaml", "--out", folder]

    def result(command: Command, folder: Path, other: Path) -> Any:
        return commands.result_of(folder)

    return Case(name, folder, search, result, commands.result_of(finished))


def _interrupted(name: str, work: Path, finished: Path, moment: Callable[[Path], bool]) -> Case:
    folder = work / name
    case = _search(name, work, folder, finished)
    commands.start(case.arguments(folder, work), work / "stdout").kill_at(lambda: moment(folder))
    return case


def _reuse(work: Path, finished: Path) -> Case:
    def search(folder: Path, other: Path) -> Arguments:
        run = work / "tiny.yaml"
        return ["--quiet", "search", run, "--out", other, "--set", f"reuse={folder}"]

    def result(command: Command, folder: Path, other: Path) -> Any:
        return commands.result_of(other)

    return Case("reuse", finished, search, result, commands.result_of(finished))


def _finetuning(work: Path, finished: Path, done: bool) -> Case:
    def tune(folder: Path, other: Path) -> Arguments:
        return [
            "--quiet", "finetune", finished / "best.yaml", "--run", finished / "run.yaml",
            "--epochs", 2, "--out", folder,
        ]  # fmt: skip

    def result(command: Command, folder: Path, other: Path) -> Any:
        # The order of the metadata in the file is another each time.
        weights = weights_digest(load_file(folder / "epitomes.safetensors"))
        return [(folder / name).read_bytes() for name in ("result.json", "design.yaml")], weights

    whole, folder = work / "tuned", work / "in-finetuning"  # the second time nothing is trained
    expected = result(_done(tune(whole, work), work), whole, work)
    if done:
        return Case("finetuned", whole, tune, result, expected)
    command = commands.start(tune(folder, work), work / "stdout")
    command.kill_at(lambda: (folder / "training.state").exists())
    return Case("in-finetuning", folder, tune, result, expected)


def _done(arguments: Arguments, work: Path) -> Command:
    command = commands.run(arguments, work / "stdout")
    assert command.process.exitcode == 0, command.stderr
    return command


def torture(found: list[Case], count: int, seed: int, work: Path) -> Counter[str]:
    """Damage the cases in turn; how often what came of it."""
    rng, outcomes = random.Random(seed), Counter[str]()
    for number in range(count):
        change, outcome, said = found[number % len(found)].damaged(rng, work)
        outcomes[outcome] += 1
        if outcome.startswith("WRONG"):
            print(f"{change}: {outcome}\n{said}", file=sys.stderr)
    return outcomes


def main() -> int:
    """Run from the command line; 1 where damage went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=60, help="flips (60)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        outcomes = torture(cases(Path(work)), given.count, given.seed, Path(work))
    told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    print(f"bit_flips: seed {given.seed}, {given.count} flips: {told}")
    return int(any(outcome.startswith("WRONG") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
