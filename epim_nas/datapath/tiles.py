"""The memories of a tile: its index tables as the words that a chip would read, slot by slot.

A tile holds neighbouring crossbars of one layer, each in a processing element (PE). Slot after
slot it reads one entry: which inputs its drivers fetch (``ifat``), which word lines they drive
(``ifrt``), which PEs work together (``control``), and where results go (``ofat``). The addresses of
an entry take as many bits as the cost model charges
(:class:`~epim_nas.hardware.index_table.TableEntry`); flags and selections come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import Field, Memory, pack
from epim_nas.datapath.round_use import RoundUse
from epim_nas.datapath.tables import NOTHING
from epim_nas.hardware.index_table import TableEntry, address_bits

ADDRESSES = ("input", "line", "output")
"""Fields that hold an address; the others are flags and selections."""


@dataclass(frozen=True)
class Pe:
    """A processing element and the crossbar in it.

    Attributes:
        number: number of the crossbar in the layer.
        row_group: its row group.
        column_group: its column group.
        driver: what drives its word lines, of the drivers of the tile.
    """

    number: int
    row_group: int
    column_group: int
    driver: int


@dataclass(frozen=True)
class TileMemories:
    """The index tables of one tile.

    Attributes:
        tile: number of the tile in the layer.
        pes: its processing elements.
        memories: ``ifat``, ``ifrt``, ``control``, ``ofat``: one word a slot, ``words_per_slot`` of
            the OFAT.
        words_per_slot: 1, or more where a slot has more results in a tile than the entry that the
            cost model charges has addresses.
    """

    tile: int
    pes: tuple[Pe, ...]
    memories: dict[str, Memory]
    words_per_slot: int

    @property
    def address_bits(self) -> int:
        """Bits of addresses in all words."""
        return self._bits(addresses=True)

    @property
    def control_bits(self) -> int:
        """Bits of flags and selections in all words."""
        return self._bits(addresses=False)

    def _bits(self, addresses: bool) -> int:
        return sum(
            field.bits * memory.count * len(memory.words)
            for memory in self.memories.values()
            for field in memory.fields
            if (field.name in ADDRESSES) == addresses
        )


def processing_elements(layer: LayerTables, tile: int) -> tuple[Pe, ...]:
    """The processing elements of one tile of a layer."""
    rows, pes = layer.grid.row_groups, layer.grid.pes
    numbers = range(tile * pes, min((tile + 1) * pes, layer.crossbars))
    row_groups = list(dict.fromkeys(number % rows for number in numbers))
    # PEs of a row group share a driver, unless the rounds of a slot drive them differently.
    own = layer.tables.slots < layer.tables.rounds
    return tuple(
        Pe(
            number=number,
            row_group=number % rows,
            column_group=number // rows,
            driver=index if own else row_groups.index(number % rows),
        )
        for index, number in enumerate(numbers)
    )


def tile_memories(layer: LayerTables) -> list[TileMemories]:
    """The memories of every tile of a layer; none for a dense layer, which is wired."""
    if layer.entry is None:
        return []
    use = RoundUse(layer)
    tiles = [_Tile(layer, layer.entry, use, number) for number in range(layer.tiles)]
    most = max(len(results) for tile in tiles for results in tile.results)
    words_per_slot = max(1, -(-most // layer.entry.outputs))
    return [tile.memories(words_per_slot) for tile in tiles]


def replica_memory(layer: LayerTables) -> Memory | None:
    """Where copies come from and go to, once a position; None where there are none."""
    pairs = [
        (int(source), int(target))
        for targets in layer.tables.ofat[layer.tables.opens]
        for copies in targets[1:]
        for source, target in zip(targets[0], copies, strict=True)
        if target != NOTHING
    ]
    if not pairs:
        return None
    bits = address_bits(layer.conv_shape[0])
    fields = (Field("source", bits), Field("target", bits))
    return Memory(fields, 1, tuple(pack(fields, [pair]) for pair in pairs))


class _Tile:
    """One tile while its memories are put together.

    Attributes:
        results: per slot (leader, epitome channel, output channel) of what is written.
    """

    def __init__(self, layer: LayerTables, entry: TableEntry, use: RoundUse, tile: int) -> None:
        self._layer, self._entry, self._use, self._tile = layer, entry, use, tile
        self._pes = processing_elements(layer, tile)
        # All tiles are alike: a last one may have places without a crossbar.
        self._places = min(layer.crossbars, layer.grid.pes)
        self._slots = [list(self._work(slot)) for slot in range(layer.tables.slots)]
        self.results = [self._results(work) for work in self._slots]

    def memories(self, words_per_slot: int) -> TileMemories:
        """The memories, with the OFAT in a number of words a slot."""
        return TileMemories(
            self._tile,
            self._pes,
            {
                "ifat": self._ifat(),
                "ifrt": self._ifrt(),
                "control": self._control(),
                "ofat": self._ofat(words_per_slot),
            },
            words_per_slot,
        )

    def _work(self, slot: int) -> Iterator[tuple[int, list[int]]]:
        """The rounds of a slot, each with the PEs that it uses here."""
        for turn in self._use.rounds(slot):
            pes = [
                index
                for index, pe in enumerate(self._pes)
                if self._use.uses(turn, pe.row_group, pe.column_group)
            ]
            if pes:
                yield turn, pes

    def _results(self, work: list[tuple[int, list[int]]]) -> list[tuple[int, int, int]]:
        tables, found = self._layer.tables, []
        for turn, pes in work:
            groups = [self._pes[index].column_group for index in pes]
            for place in self._use.outputs(turn, groups):
                channel, output = tables.columns[turn, place], tables.ofat[turn, 0, place]
                found.append((pes[0], int(channel), int(output)))
        return found

    def _driven(self, work: list[tuple[int, list[int]]]) -> list[tuple[int, int] | None]:
        """(round, position in the patch) of every channel of every driver, None where it rests."""
        size = self._entry.channels
        found: list[tuple[int, int] | None] = [None] * (self._entry.drivers * size)
        for turn, pes in work:
            for pe in (self._pes[index] for index in pes):
                for lane, place in enumerate(self._use.channels(turn, pe.row_group)):
                    found[pe.driver * size + lane] = (turn, place)
        return found

    def _ifat(self) -> Memory:
        ifat = self._layer.tables.ifat
        slabs = ifat.shape[1]
        fields = (Field("valid", 1), Field("input", self._entry.input_bits))
        words = []
        for work in self._slots:
            records = []
            for driven in self._driven(work):
                channels = [NOTHING] * slabs if driven is None else ifat[driven[0], :, driven[1]]
                records += [_valid(int(channel)) for channel in channels]
            words.append(pack(fields, records))
        return Memory(fields, self._entry.drivers * self._entry.channels * slabs, tuple(words))

    def _ifrt(self) -> Memory:
        ifrt, rows = self._layer.tables.ifrt, self._layer.crossbar_rows
        fields = (Field("line", self._entry.line_bits),)
        words = tuple(
            pack(
                fields,
                [
                    (0 if driven is None else int(ifrt[driven]) % rows,)
                    for driven in self._driven(work)
                ],
            )
            for work in self._slots
        )
        return Memory(fields, self._entry.drivers * self._entry.channels, words)

    def _control(self) -> Memory:
        fields = (Field("active", 1), Field("leader", address_bits(self._places)))
        words = []
        for work in self._slots:
            records = [(0, 0)] * self._places
            for _, pes in work:
                for index in pes:
                    records[index] = (1, pes[0])
            words.append(pack(fields, records))
        return Memory(fields, self._places, tuple(words))

    def _ofat(self, words_per_slot: int) -> Memory:
        fields = (
            Field("valid", 1),
            Field("opens", 1),
            Field("closes", 1),
            Field("leader", address_bits(self._places)),
            Field("column", address_bits(self._layer.epitome[0])),
            Field("output", self._entry.output_bits),
        )
        # In a tile, an output is opened and finished by what this tile adds to it, in the order of
        # the slots, which is not always that of the plan.
        order = [
            (slot, place) for slot, found in enumerate(self.results) for place in range(len(found))
        ]
        outputs = [self.results[slot][place][2] for slot, place in order]
        last = dict(zip(outputs, order, strict=True))
        first = dict(zip(reversed(outputs), reversed(order), strict=True))
        size, words = self._entry.outputs, []
        for slot, found in enumerate(self.results):
            records: list[tuple[int, ...]] = [
                (
                    1,
                    int(first[output] == (slot, place)),
                    int(last[output] == (slot, place)),
                    leader,
                    column,
                    output,
                )
                for place, (leader, column, output) in enumerate(found)
            ]
            records += [(0,) * len(fields)] * (words_per_slot * size - len(records))
            for start in range(0, len(records), size):
                words.append(pack(fields, records[start : start + size]))
        return Memory(fields, size, tuple(words))


def _valid(address: int) -> tuple[int, int]:
    return (0, 0) if address == NOTHING else (1, address)
