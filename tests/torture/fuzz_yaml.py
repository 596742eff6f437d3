"""Damaged input files, one command each: it ends with 0 or 2 and a message of a few lines.

    python tests/torture/fuzz_yaml.py --count 4000 --seed 0

Every mutation is made from its own number: one that failed is made again by ``--count 1 --seed
NUMBER``. Prints what was accepted, refused and failed; exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import io
import logging
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from epim_nas.cli.app import run_command  # noqa: E402
from tests.hardware.reference import whole_ini  # noqa: E402
from tests.torture.mutations import NASTY, mutated_ini, mutated_yaml  # noqa: E402

SECONDS = 60
"""The longest that a command may take."""
MOST_CHARACTERS = 2000
"""The longest message."""
MEMORY_BYTES = 8 * 2**30

NETWORK = """
schema: epim-nas/network@1
name: small
input_shape: [3, 8, 8]
layers:
  - {name: c1, type: conv, inputs: [input], in_channels: 3, out_channels: 64, kernel: 3,
     stride: 1, padding: 1, dilation: 1, groups: 1, input_size: [8, 8], output_size: 8}
  - {name: c2, type: conv, inputs: [c1], in_channels: 64, out_channels: 64, kernel: [3, 3],
     padding: 1, input_size: 8}
  - {name: s1, type: element_sum, inputs: [c1, c2], channels: 64, input_size: 8}
  - {name: p1, type: pooling, inputs: [s1], channels: 64, kernel: 2, stride: 2, input_size: 8}
  - {name: f1, type: fc, inputs: [p1], in_features: 1024, out_features: 10, reshaped: false}
"""
DESIGN = """
schema: epim-nas/design@1
network: small
hardware: {name: xbar_64, digest: abc}
layers:
  c1: {epitome: {out_channels: 32, in_channels: 3, height: 3, width: 3}, wrap: true,
       patch: [32, 3], weight_bits: 3, activation_bits: 9}
  c2: {epitome: {out_channels: 32, in_channels: 32, height: 4, width: 4}, weight_bits: 3,
       wrap_in: false}
  f1: {dense: true, weight_bits: 9, activation_bits: 9}
totals: {crossbars: 12, energy_nj: 3.5}
provenance: {trial: 3, metrics: {accuracy: {value: 0.9, measured: supernet}}}
"""


@dataclass(frozen=True)
class Target:
    """A kind of file and the command that reads it.

    Attributes:
        texts: whole files to damage.
        command: the command, with ``FILE`` for the damaged file and ``NETWORK``, ``DESIGN`` for
            whole ones.
        suffix: of the damaged file.
        mutate: makes a damaged text.
    """

    texts: tuple[str, ...]
    command: tuple[str, ...]
    suffix: str = ".yaml"
    mutate: Callable[[str, Random], str] = mutated_yaml


def _shipped(folder: str) -> tuple[str, ...]:
    return tuple(path.read_text() for path in sorted((ROOT / folder).glob("*.yaml")))


def _override(text: str, rng: Random) -> str:
    """A change of a key of a chip."""
    return f"{rng.choice(text.split())}={rng.choice(NASTY)}".replace("\0", "")


COST = ("cost", "--json", "--network", "NETWORK")
SPACE = ("describe", "--json", "--network", "NETWORK", "--hardware", "xbar_64", "--space", "FILE")
CHIP_KEYS = (
    "name crossbar crossbar.rows crossbar.resistances_ohm mapping.groups mapping.packing mesh.size "
    "tile.pes interface.adc interface.adc.bits digital.frequency_mhz buffer.tile_output_kb a.b. ."
)


def targets() -> dict[str, Target]:
    """The files of users that commands read without training."""
    return {
        "chip": Target(_shipped("cost_models"), (*COST, "--hardware", "FILE")),
        "space": Target(_shipped("search_spaces"), SPACE),
        "run": Target(_shipped("runs"), ("launch", "FILE", "--on", "ray", "--out", "OUT")),
        "design": Target((DESIGN,), (*COST, "--hardware", "xbar_64", "--design", "FILE")),
        "network": Target(
            (NETWORK,), ("cost", "--json", "--hardware", "xbar_64", "--network", "FILE")
        ),
        "ini": Target((whole_ini(),), (*COST, "--hardware", "FILE"), ".ini", mutated_ini),
        "set": Target(
            (CHIP_KEYS,), (*COST, "--hardware", "xbar_64", "--set", "TEXT"), "", _override
        ),
    }


class TooSlow(BaseException):
    """A command took too long. No Exception: nothing else may catch it."""


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Outcome:
    """What a command did with a damaged file.

    Attributes:
        target: kind of the file.
        seed: number of the mutation.
        text: the damaged file.
        result: ``accepted``, ``refused``, or what was wrong.
        stderr: what it said.
    """

    target: str
    seed: int
    text: str
    result: str
    stderr: str

    @property
    def failed(self) -> bool:
        """Whether neither accepted nor refused as it should."""
        return self.result not in ("accepted", "refused")


def attempt(seed: int, folder: Path) -> Outcome:
    """Make one mutation and run its command in this process.

    Args:
        seed: number of the mutation.
        folder: a folder for the files.
    """
    rng = Random(seed)
    kinds = targets()
    name = rng.choice(list(kinds))
    target = kinds[name]
    text = target.mutate(rng.choice(target.texts), rng)
    path = folder / f"damaged{target.suffix}"
    if target.suffix:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    (folder / "network.yaml").write_text(NETWORK)
    given = {
        "FILE": str(path),
        "NETWORK": str(folder / "network.yaml"),
        "TEXT": text,
        "OUT": str(folder / f"out{seed}"),
    }
    result, stderr = run(["--quiet", *(given.get(part, part) for part in target.command)])
    return Outcome(name, seed, text, result, stderr)


def run(arguments: list[str], seconds: int = SECONDS) -> tuple[str, str]:
    """Run a command in this process: what came of it (see :class:`Outcome`), and its stderr."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            warnings.catch_warnings(),
            _limited(seconds),
        ):
            warnings.simplefilter("ignore")
            code = run_command(arguments)
    except TooSlow:
        return f"more than {seconds} s", err.getvalue()
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}", err.getvalue()
    return judged(code, err.getvalue()), err.getvalue()


def judged(code: int, stderr: str) -> str:
    """What came of a command that ended: ``accepted``, ``refused``, or what is wrong with it."""
    messages = [line for line in stderr.splitlines() if line.startswith("epim-nas: ")]
    if "Traceback" in stderr or "This is a bug" in stderr:
        return "a bug"
    if code == 0:
        return "accepted"
    if code != 2:
        return f"exit code {code}"
    if len(messages) != 1:
        return f"{len(messages)} messages"
    long = len(stderr) > MOST_CHARACTERS or len(stderr.splitlines()) > 10
    return "a long message" if long else "refused"


def main() -> int:
    """Run many, print the counts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="mutations")
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    parser.add_argument("--show", type=int, default=10, help="failures to print")
    given = parser.parse_args()
    logging.raiseExceptions = False  # handlers of a former command have its closed stream
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    counts: Counter[tuple[str, str]] = Counter()
    failed: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seed, given.seed + given.count):
            outcome = attempt(seed, Path(folder))
            counts[outcome.target, "failed" if outcome.failed else outcome.result] += 1
            failed += [outcome] if outcome.failed else []
    print(f"{'file':10}{'accepted':>10}{'refused':>10}{'failed':>10}")
    for name in targets():
        numbers = (counts[name, result] for result in ("accepted", "refused", "failed"))
        print(f"{name:10}" + "".join(f"{number:10}" for number in numbers))
    for outcome in failed[: given.show]:
        print(f"\nseed {outcome.seed} ({outcome.target}): {outcome.result}")
        print(outcome.text[:600], outcome.stderr[:1000], sep="\n")
    print(f"\n{given.count} damaged files, {len(failed)} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
