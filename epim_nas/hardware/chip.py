"""The chip description: what a chip YAML (``epim-nas/chip@1``) may say."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from epim_nas.files import digest as digest_of
from epim_nas.schema import Strict

CHIP_SCHEMA: Literal["epim-nas/chip@1"] = "epim-nas/chip@1"

T = TypeVar("T")


def _as_tuple(value: Any) -> Any:
    # YAML has lists only; tuples keep the frozen chip hashable.
    return tuple(value) if isinstance(value, list) else value


# Generous ranges of what can be built: outside of them, a value is a slip of units or digits, and
# products of several run out of the numbers of a computer.
Nanometres = Annotated[float, pydantic.Field(ge=0.1, le=10_000)]
SquareMicrometres = Annotated[float, pydantic.Field(ge=1e-9, le=1e9)]
SquareMicrometresOrZero = Annotated[float, pydantic.Field(ge=0, le=1e9)]
Watts = Annotated[float, pydantic.Field(ge=1e-18, le=1e3)]
WattsOrZero = Annotated[float, pydantic.Field(ge=0, le=1e3)]
Nanoseconds = Annotated[float, pydantic.Field(ge=1e-6, le=1e9)]
Volts = Annotated[float, pydantic.Field(ge=-100, le=100)]
Ohms = Annotated[float, pydantic.Field(ge=1, le=1e15)]
Megahertz = Annotated[float, pydantic.Field(ge=1e-3, le=1e6)]
GigaPerSecond = Annotated[float, pydantic.Field(ge=1e-9, le=1e9)]
Kilobytes = Annotated[float, pydantic.Field(ge=0, le=1e6)]
Count = Annotated[int, pydantic.Field(ge=1, le=65_536)]
Side = Annotated[int, pydantic.Field(ge=1, le=1024)]
"""Tiles along an edge of the mesh, PEs along one of a tile, ...: places are listed one by one."""
SidePair = Annotated[tuple[Side, Side], pydantic.BeforeValidator(_as_tuple)]
VoltagePair = Annotated[tuple[Volts, Volts], pydantic.BeforeValidator(_as_tuple)]
ResistancePair = Annotated[tuple[Ohms, Ohms], pydantic.BeforeValidator(_as_tuple)]


class Crossbar(Strict):
    """The array of cells."""

    rows: Count = 256
    columns: Count = 256
    subarray_rows: Count = 256
    cell_type: Literal["1T1R", "0T1R"] = "1T1R"
    cell_area_um2: SquareMicrometres = 1.44
    area_model: Literal["cell_area", "technology"] = "cell_area"
    device_technology_nm: Nanometres = 130
    transistor_technology_nm: Nanometres = 130
    driver_area_um2_per_row: SquareMicrometresOrZero = 1150
    read_latency_ns: Nanoseconds = 3.16
    read_voltages_v: VoltagePair = (0, 0.15)
    resistances_ohm: ResistancePair = (1e6, 1e4)
    power_model: Literal["occupied_cells", "full_array"] = "occupied_cells"

    @pydantic.model_validator(mode="after")
    def _whole_subarrays(self) -> Crossbar:
        if self.rows % self.subarray_rows:
            raise ValueError(
                f"got `subarray_rows` {self.subarray_rows}, which does not divide the "
                f"{self.rows} `rows`. Choose a divisor of `rows`"
            )
        return self


class Mapping(Strict):
    """How weights are laid out on crossbars."""

    packing: Literal["sliced", "packed"] = "sliced"
    cell_bits: Annotated[int, pydantic.Field(ge=1, le=8)] = 1
    polarity: Literal[1, 2] = 2
    subtraction: Literal["analog", "digital"] = "analog"
    groups: Count = 1


class Converter(Strict):
    """A converter: an entry of MNSIM's table, or numbers of one's own (they win)."""

    choice: Count | None = None
    bits: Annotated[int, pydantic.Field(ge=1, le=16)] | None = None
    area_um2: SquareMicrometresOrZero | None = None
    power_w: WattsOrZero | None = None
    rate_gsps: GigaPerSecond | None = None


class Dac(Converter):
    """A digital-to-analog converter that drives a word line."""

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Dac:
        return _complete(self, 7)


class Adc(Converter):
    """An analog-to-digital converter that reads bit lines."""

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Adc:
        return _complete(self, 9)


def _complete(converter: T, choices: int) -> T:
    values = converter.model_dump()  # type: ignore[attr-defined]
    choice = values.pop("choice")
    if choice is not None and choice > choices:
        raise ValueError(f"got `choice` {choice}. Allowed: 1 to {choices}")
    missing = [name for name, value in values.items() if value is None]
    if choice is None and missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise ValueError(f"{names} must be given where there is no `choice` from the table")
    return converter


class Interface(Strict):
    """Converters and how many of them a subarray has."""

    dac: Dac = Dac(choice=1)
    dacs_per_subarray: Count = 128
    adc: Adc = Adc(choice=6)
    adcs_per_subarray: Annotated[int, pydantic.Field(ge=0, le=65_536)] = 128


class Block(Strict):
    """A digital block: its technology, and optionally its own area and power."""

    technology_nm: Nanometres
    area_um2: SquareMicrometres | None = None
    power_w: Watts | None = None


class Digital(Strict):
    """The digital part of a processing element."""

    frequency_mhz: Megahertz = 500
    adder: Block = Block(technology_nm=45)
    shift_register: Block = Block(technology_nm=65)
    register_: Block = pydantic.Field(default=Block(technology_nm=45), alias="register")
    joint_module: Block = Block(technology_nm=45)


class Pooling(Strict):
    """The pooling unit that every tile has."""

    shape: SidePair = (3, 3)
    units: Literal[64] = 64
    technology_nm: Nanometres = 65


class Tile(Strict):
    """A tile: processing elements (PEs) that share an output buffer."""

    pes: SidePair = (2, 2)
    intra_bandwidth_gbps: GigaPerSecond = 1024
    pooling: Pooling = Pooling()


class Mesh(Strict):
    """The tiles of the chip and the links between them."""

    size: SidePair = (64, 64)
    order: Literal["row_major", "serpentine", "shells", "diagonal"] = "shells"
    bandwidth_gbps: GigaPerSecond = 20


class Buffer(Strict):
    """SRAM buffers: an input buffer per PE, an output buffer per tile."""

    technology_nm: Nanometres = 90
    bus_bits: Count = 64
    pe_input_kb: Kilobytes = 0
    tile_output_kb: Kilobytes = 0


class IndexTable(Strict):
    """The index tables (IFAT, IFRT, OFAT) of epitome layers, one SRAM a tile."""

    technology_nm: Nanometres | None = None
    bus_bits: Count | None = None


class Pipeline(Strict):
    """How layers overlap."""

    overlap: bool = True
    input_fill: Literal["window", "line"] = "window"


class Chip(Strict):
    """A chip; the dotted paths of its fields are the keys of the chip YAML.

    Build one with :func:`epim_nas.hardware.load_chip`. Units are in the names; every key is
    explained, with its source, in ``cost_models/mnsim_default.yaml``.

    Example:
        >>> from epim_nas.hardware import load_chip
        >>> load_chip("epim_256", ["mapping.packing=sliced"]).crossbar.rows
        256
    """

    schema_: Literal["epim-nas/chip@1"] = pydantic.Field(default=CHIP_SCHEMA, alias="schema")
    name: str
    crossbar: Crossbar = Crossbar()
    mapping: Mapping = Mapping()
    interface: Interface = Interface()
    digital: Digital = Digital()
    tile: Tile = Tile()
    mesh: Mesh = Mesh()
    buffer: Buffer = Buffer()
    index_table: IndexTable = IndexTable()
    pipeline: Pipeline = Pipeline()

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_dict(self) -> dict[str, Any]:
        """The content of the chip YAML, with every default written out."""
        data: dict[str, Any] = self.model_dump(by_alias=True, mode="json")
        return data

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but the name: the identity of the hardware."""
        data = self.to_dict()
        data.pop("name")
        return digest_of(data)
