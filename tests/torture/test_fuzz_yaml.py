"""A short part of `make torture`: damaged files end a command with 0 or 2 and a short message."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from epim_nas.documents import parse_yaml
from tests.torture.fuzz_yaml import NETWORK, attempt, judged, run, targets
from tests.torture.mutations import mutated_yaml, parsed, written

PARTS, IN_A_PART = 4, 25


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_are_taken_or_refused(part: int, tmp_path: Path) -> None:
    first = 10_000 + part * IN_A_PART
    outcomes = [attempt(seed, tmp_path) for seed in range(first, first + IN_A_PART)]
    wrong = [outcome for outcome in outcomes if outcome.failed]
    assert not wrong, "\n".join(f"{o.seed} {o.target}: {o.result}\n{o.stderr}" for o in wrong)
    assert {outcome.result for outcome in outcomes} == {"accepted", "refused"}


@pytest.mark.parametrize("name", [name for name in targets() if name != "set"])
def test_whole_files_are_taken(name: str, tmp_path: Path) -> None:
    target = targets()[name]
    path = tmp_path / f"whole{target.suffix}"
    (tmp_path / "network.yaml").write_text(NETWORK)
    given = {"FILE": path, "NETWORK": tmp_path / "network.yaml", "OUT": tmp_path / "out"}
    for text in target.texts:
        path.write_text(text if name == "ini" else written(parsed(text)))
        result, stderr = run([str(given.get(part, part)) for part in target.command])
        assert result == "accepted", stderr


def test_texts_are_written_again_as_they_were() -> None:
    for target in targets().values():
        if target.mutate is mutated_yaml:
            for text in target.texts:
                assert parse_yaml(written(parsed(text))) == parse_yaml(text)


def test_mutations_come_from_their_seed_and_change_something() -> None:
    texts = {mutated_yaml(NETWORK, Random(seed)) for seed in range(200)}
    assert len(texts) > 180
    assert mutated_yaml(NETWORK, Random(3)) == mutated_yaml(NETWORK, Random(3))


@pytest.mark.parametrize(
    ("code", "stderr", "result"),
    [
        (0, "", "accepted"),
        (2, "W a warning\nepim-nas: a: wrong.\n", "refused"),
        (1, "epim-nas: wrong.\n", "exit code 1"),
        (1, "epim-nas: unexpected X\nepim-nas: This is a bug; ...\n", "a bug"),
        (2, "Traceback (most recent call last)\nepim-nas: a\n", "a bug"),
        (2, "", "0 messages"),
        (2, "epim-nas: " + "x" * 3000, "a long message"),
        (2, "epim-nas: x" + "\ny" * 20, "a long message"),
    ],
)
def test_what_is_wrong_is_seen(code: int, stderr: str, result: str) -> None:
    assert judged(code, stderr) == result
