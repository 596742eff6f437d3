"""The formats: what is written comes back, and what is damaged is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epim_nas import EpitomeShape, InputError, SamplingPlan, load_chip
from epim_nas.datapath.files import read_tables, write_tables
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import Field, Memory, pack, read_memory, write_memory
from epim_nas.errors import EpimError
from tests.datapath.cases import Case, cases

CHIP = load_chip("xbar_64")
PLAN = SamplingPlan.build((32, 32, 3, 3), EpitomeShape(16, 16, 3, 3))
LAYER = LayerTables.build("conv1", PLAN, 3, CHIP)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), name=st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
@pytest.mark.parametrize("ending", ["json", "bin"])
def test_tables_come_back(tmp_path: Path, ending: str, case: Case, name: str) -> None:
    layer = LayerTables.on_grid(name, case.plan, case.grid, case.rows)
    path = tmp_path / f"tables.{ending}"
    write_tables(path, layer)
    found = read_tables(path)
    assert found.equals(layer)
    assert found.layer == name
    found.check_plan(case.plan)


def test_json_is_plain_and_says_what_it_is(tmp_path: Path) -> None:
    write_tables(tmp_path / "t.json", LAYER)
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["schema"] == "epim-nas/datapath@1"
    assert content["weight_shape"] == [32, 32, 3, 3]
    # The example of the cost model's page: 3 row groups of 7 channels, 4 rounds; the second one
    # adds the inputs 16 to 31 to the same outputs, rotated by 1.
    assert content["crossbars"]["row_groups"] == 3
    tables = content["tables"]
    assert tables["opens"] == [True, False, True, False]
    assert tables["ifat"][1] == [list(range(16, 32))]
    lines = [group * 64 + local * 9 for group in range(3) for local in range(7)][:16]
    assert tables["ifrt"][0] == lines
    assert tables["ifrt"][1] == lines[1:] + lines[:1]
    assert tables["ofat"][1] == [list(range(16))]
    assert tables["ofat"][2] == [list(range(16, 32))]


def test_binary_layout_without_our_reader(tmp_path: Path) -> None:
    """The layout of the page, read with struct alone."""
    write_tables(tmp_path / "t.bin", LAYER)
    data = (tmp_path / "t.bin").read_bytes()
    assert data[:8] == b"EPIMIDX\0"
    header = struct.unpack_from("<32I", data, 8)
    assert header[0] == 1
    assert header[1:12] == (32, 32, 3, 3, 1, 16, 16, 3, 3, 16, 16)
    assert header[12:19] == (64, 3, 7, 64, 2, 1, 4)
    assert header[19:26] == (3, 7, 1, 5, 6, 16, 5)
    assert header[26:30] == (4, 1, 1, 5)
    assert header[30:] == (0, 0)
    assert data[136:144] == b"conv1\0\0\0"
    arrays = struct.unpack_from("<4i4i64i64i64i64i", data, 144)
    assert arrays[:4] == (0, 1, 2, 3)
    assert arrays[4:8] == (1, 2, 1, 2)
    assert arrays[8:24] == tuple(range(16))
    assert arrays[8 + 192 : 8 + 192 + 16] == tuple(range(16))
    assert len(data) == 144 + 4 * len(arrays) + 4
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_of_a_binary_file_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "t.bin"
    write_tables(path, LAYER)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"t\.bin"):
        read_tables(path)


def _set(*place: Any, value: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        node = content
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema", value="epim-nas/datapath@2"), r"schema: got .*datapath@2"),
        (_set("tabels", value={}), r"tabels: unknown key.*Did you mean `tables`"),
        (_set("groups", value=0), r"groups: got `0`"),
        (_set("weight_shape", value=[32, 32, 3]), r"weight_shape: got.*at least 4"),
        (_set("weight_shape", value=[32, 0, 3, 3]), "has a size of 0"),
        (_set("epitome", value=[16, 32, 3, 3]), r"row_groups: got 3. Allowed: 5"),
        (_set("entry", "input_bits", value=4), r"entry.input_bits: got 4. Allowed: 5"),
        (_set("tables", "ifat", 1, 0, 3, value=32), r"tables.ifat: got 32. Allowed: -1 to 31"),
        (_set("tables", "ifrt", 2, 0, value=-2), r"tables.ifrt: got -2. Allowed: -1 to 191"),
        (_set("tables", "columns", 0, 0, value=16), r"tables.columns: got 16. Allowed: -1 to 15"),
        (_set("tables", "ofat", 0, 0, 0, value=32), r"tables.ofat: got 32. Allowed: -1 to 31"),
        (_set("tables", "ofat", 2, 0, 0, value=0), r"output channel 0 is opened 2 times"),
        (_set("tables", "slot", 0, value=-1), r"tables.slot: got -1. Allowed: 0 to 3"),
        (_set("tables", "opens", value=[True]), r"tables.opens: has shape \(1,\)"),
        (_set("tables", "ifrt", 0, value=[0]), r"tables.ifrt: has rows of different lengths"),
        (_set("tables", "ifat", 0, 0, 0, value="x"), r"tables.ifat.0.0.0: got `'x'`"),
    ],
)  # fmt: skip
def test_wrong_json(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "t.json"
    write_tables(path, LAYER)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_tables(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2")
    with pytest.raises(InputError, match="not valid JSON at line 1"):
        read_tables(tmp_path / "a.json")
    (tmp_path / "a.bin").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"begins with .*PNG"):
        read_tables(tmp_path / "a.bin")
    with pytest.raises(InputError, match="no such file"):
        read_tables(tmp_path / "none.bin")
    with pytest.raises(InputError, match=r"ends in `\.hex`. Allowed: `\.json`, `\.bin`"):
        read_tables(tmp_path / "a.hex")
    write_tables(tmp_path / "b.bin", LAYER)
    data = bytearray((tmp_path / "b.bin").read_bytes())
    data[8] = 2
    (tmp_path / "b.bin").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"has version 2\. Allowed: 1"):
        read_tables(tmp_path / "b.bin")


def test_tables_of_other_weights_are_refused() -> None:
    other = SamplingPlan.build((32, 32, 3, 3), EpitomeShape(16, 8, 3, 3))
    with pytest.raises(
        InputError, match=r"layer conv1: are tables of epitome 16x16x3x3 .*16x8x3x3"
    ):
        LAYER.check_plan(other)
    wrapped = SamplingPlan.build((32, 32, 3, 3), EpitomeShape(16, 16, 3, 3), wrap=True)
    with pytest.raises(InputError, match=r"tables\.slot: differs from the plan of the weights"):
        LAYER.check_plan(wrapped)
    reordered = PLAN.reordered(None, [[1, 0, *range(2, 32)]])
    with pytest.raises(InputError, match=r"tables\.ifat: differs"):
        LAYER.check_plan(reordered)


@given(st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memories_come_back(tmp_path: Path, words: list[list[int]]) -> None:
    fields = (Field("a", 3),)
    memory = Memory(fields, 3, tuple(pack(fields, [[value] for value in word]) for word in words))
    write_memory(tmp_path / "m.hex", memory, "numbers")
    assert read_memory(tmp_path / "m.hex", 9, len(words)) == memory.words
    assert [[record["a"] for record in memory.records(i)] for i in range(len(words))] == words


def test_what_readmemh_understands(tmp_path: Path) -> None:
    path = tmp_path / "m.hex"
    path.write_text("// head\n@2 0_f /* two\nlines */ a\n@0\nB c // end\n")
    assert read_memory(path, 4, 4) == (11, 12, 15, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "word 3: is missing: 3 words. Allowed: 4 words"),
        ("1 2 3 4 5", "word 4: lies outside of the memory"),
        ("1 2 3 1f", "word 3: has 5 bits. Allowed: 4 bits a word"),
        ("1 2 @0 3 4", "word 0: is given twice"),
        ("1 2 3 xx", "got `xx`. Allowed: a word of hexadecimal digits"),
        ("@g 1", "got `g`. Allowed: an address"),
    ],
)
def test_wrong_memory_images(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.hex").write_text(text)
    with pytest.raises(InputError, match=message):
        read_memory(tmp_path / "m.hex", 4, 4)


def test_a_value_that_does_not_fit_its_field_is_refused() -> None:
    with pytest.raises(EpimError, match=r"field line: got 8\. Allowed: 0 to 7"):
        pack([Field("line", 3)], [[8]])


def test_grid_of_another_plan_is_refused() -> None:
    from epim_nas.datapath.tables import IndexTables

    with pytest.raises(InputError, match=r"grid: got 16 outputs in 3 row groups"):
        IndexTables.build(
            SamplingPlan.build((32, 32, 3, 3), EpitomeShape(32, 16, 3, 3)), LAYER.grid, 64
        )
    with pytest.raises(InputError, match=r"crossbar_rows: got 60. Allowed: at least 63"):
        IndexTables.build(PLAN, LAYER.grid, 60)
    assert np.array_equal(LAYER.tables.slot, [0, 1, 2, 3])
