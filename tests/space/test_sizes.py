"""Sizes in crossbars and as matrices: what they resolve to, against the cost model's mapping."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas import Choice, EpitomeShape, InputError, LayerSpec, Network, SearchSpace
from epim_nas.hardware import Chip, CostModel, load_chip, map_layer
from epim_nas.schema import validate
from epim_nas.space import SpaceConfig
from epim_nas.space.config import Crossbars, Matrix

NETWORK = Network(
    "net",
    (
        LayerSpec(
            "conv", "conv", ("input",), 512, 1024, (8, 8), (8, 8), kernel=(3, 3), padding=(1, 1)
        ),
        LayerSpec("point", "conv", ("conv",), 1024, 512, (8, 8), (8, 8)),
    ),
    (512, 8, 8),
)


def build(
    epitome: dict[str, object], chip: Chip | None, bits: int = 3, network: Network = NETWORK
) -> SearchSpace:
    keys = {"dense": True, "epitome": epitome, "weight_bits": [bits]}
    data = {"schema": "epim-nas/space@1", "name": "s", "defaults": keys}
    return SearchSpace.build(validate(SpaceConfig, data, "s.yaml"), network, chip)


def shapes(space: SearchSpace, layer: str) -> list[EpitomeShape]:
    return [c.shape for c in space.layer_choices[layer] if c.shape is not None]


chips = st.builds(
    lambda rows, columns, packing, cell_bits, polarity, groups: load_chip(
        "mnsim_default",
        [
            f"crossbar.rows={rows}",
            f"crossbar.columns={columns}",
            f"crossbar.subarray_rows={rows}",
            f"mapping.packing={packing}",
            f"mapping.cell_bits={cell_bits}",
            f"mapping.polarity={polarity}",
            f"mapping.groups={groups}",
        ],
    ),
    st.sampled_from([32, 64, 100, 256]),
    st.sampled_from([32, 64, 100, 256]),
    st.sampled_from(["sliced", "packed"]),
    st.integers(1, 4),
    st.sampled_from([1, 2]),
    st.integers(1, 2),
)


@settings(max_examples=60)
@given(
    chip=chips,
    count=st.integers(1, 5),
    bits=st.integers(2, 9),
    growth=st.integers(0, 1),
    layer=st.sampled_from(["conv", "point"]),
)
def test_one_more_channel_would_take_one_more_crossbar(
    chip: Chip, count: int, bits: int, growth: int, layer: str
) -> None:
    spec = replace(NETWORK[layer], in_channels=96, out_channels=160)
    network = Network("one", (replace(spec, inputs=("input",)),), (spec.in_channels, 8, 8))

    larger = replace(spec, in_channels=97, out_channels=161)  # room for one more

    def groups(shape: EpitomeShape) -> tuple[int, int]:
        mapping = map_layer(larger, Choice(shape, weight_bits=bits), chip)
        return mapping.row_groups, mapping.column_groups

    aligned = f"{count} crossbars"
    sizes = {"growth": [growth], "in_channels": [aligned], "out_channels": ["1/4"]}
    for shape in shapes(build(sizes, chip, bits, network), layer):
        assert groups(shape)[0] <= count
        assert groups(replace(shape, in_channels=shape.in_channels + 1))[0] == count + 1
    sizes = {"growth": [growth], "in_channels": ["1/4"], "out_channels": [aligned]}
    found = shapes(build(sizes, chip, bits, network), layer)
    for shape in found:
        assert groups(shape)[1] <= count
        assert groups(replace(shape, out_channels=shape.out_channels + 1))[1] > count
    if not found:  # one channel is too much, or the whole layer too little
        quarter = EpitomeShape(
            1, spec.in_channels // 4, spec.kernel[0] + growth, spec.kernel[1] + growth
        )
        whole = replace(quarter, out_channels=spec.out_channels)
        assert groups(quarter)[1] > count or groups(whole)[1] <= count


@pytest.mark.parametrize(
    ("packing", "bits", "outputs"),
    # Magnitudes of 2 and 4 bits in 1-bit cells. Sliced, a channel has a column on as many
    # crossbars; packed, as many columns on one.
    [("packed", 3, 256), ("packed", 5, 128), ("sliced", 3, 256), ("sliced", 5, None)],
)
def test_two_crossbars_of_columns_by_hand(packing: str, bits: int, outputs: int | None) -> None:
    chip = load_chip(
        "mnsim_default",
        [f"mapping.packing={packing}", "mapping.cell_bits=1", "mapping.polarity=2"],
    )
    assert (chip.crossbar.columns, chip.mapping.groups) == (256, 1)
    found = shapes(build({"out_channels": ["2 crossbars"]}, chip, bits), "conv")
    assert [shape.out_channels for shape in found] == ([] if outputs is None else [outputs])


def test_rows_are_filled_by_whole_channels() -> None:
    chip = load_chip("epim_256")
    space = build({"in_channels": ["1 crossbar", "10 crossbars"], "growth": [0, 1]}, chip)
    # floor(256 / 9) = 28 and floor(256 / 16) = 16 channels a crossbar, not 2560 / 9 = 284 in ten.
    assert [s.in_channels for s in shapes(space, "conv")] == [28, 16, 280, 160]
    model = CostModel(NETWORK, chip)
    table = model.table(space.layer_choices)
    for index, choice in enumerate(space.layer_choices["conv"]):
        assert table.layers["conv"].crossbars[index] == (
            map_layer(NETWORK["conv"], choice, chip).crossbars
        )
    rows = [
        map_layer(NETWORK["conv"], choice, chip).row_groups
        for choice in space.layer_choices["conv"]
        if choice.shape
    ]
    assert rows == [1, 1, 10, 10]


def test_a_size_in_crossbars_needs_the_chip() -> None:
    for key in ("in_channels", "out_channels"):
        with pytest.raises(InputError, match=r"conv: the size `2 crossbars` depends on the chip"):
            build({key: ["2 crossbars"]}, None)


def test_matrices_are_rows_by_columns_beside_the_product() -> None:
    space = build(
        {"in_channels": ["1/2"], "matrices": ["1024x256", "512x128"], "growth": [0, 1]}, None
    )
    # 1024 // 9 = 113 and 1024 // 16 = 64 channels; 512 // 9 = 56 and 512 // 16 = 32.
    assert shapes(space, "conv") == [
        EpitomeShape(1024, 256, 3, 3),
        EpitomeShape(1024, 256, 4, 4),
        EpitomeShape(256, 113, 3, 3),
        EpitomeShape(256, 64, 4, 4),
        EpitomeShape(128, 56, 3, 3),
        EpitomeShape(128, 32, 4, 4),
    ]
    # 1024 channels are all of the pointwise layer's, 1024 // 4 = 256 with growth.
    assert EpitomeShape(256, 1024, 1, 1) in shapes(space, "point")
    assert EpitomeShape(256, 256, 2, 2) in shapes(space, "point")


def test_matrices_that_do_not_fit_a_layer_are_left_out() -> None:
    # Fewer rows than one channel takes, more columns or more rows than the layer has.
    space = build({"matrices": ["8x64", "90x2048", "9000x4", "90x4"]}, None)
    assert shapes(space, "conv") == [EpitomeShape(4, 10, 3, 3)]


WRONG = {
    "no crossbars": ({"in_channels": ["0 crossbars"]}, "in_channels.0"),
    "part of a crossbar": ({"in_channels": ["1/2 crossbar"]}, "in_channels.0"),
    "a bare word": ({"out_channels": ["crossbars"]}, "out_channels.0"),
    "a matrix without columns": ({"matrices": ["1024"]}, "matrices.0"),
    "a matrix of nothing": ({"matrices": ["0x256"]}, "matrices.0"),
    "a matrix as a number": ({"matrices": [1024]}, "matrices.0"),
    "one matrix, not a list": ({"matrices": "1024x256"}, "matrices"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sizes_are_refused_by_name(case: str) -> None:
    epitome, field = WRONG[case]
    with pytest.raises(InputError, match=rf"defaults\.epitome\.{field}"):
        build(epitome, load_chip("epim_256"))


def test_sizes_are_stored_as_they_are_written() -> None:
    sizes = {
        "in_channels": [1, "1/2", 64, "1 crossbar"],
        "out_channels": ["2 crossbars"],
        "matrices": ["1024x256"],
    }
    keys = {"defaults": {"epitome": sizes}, "ties": ["stages", {"residual": "layer1*"}, ["fc"]]}
    config = validate(SpaceConfig, {"schema": "epim-nas/space@1", "name": "s", **keys}, "s.yaml")
    epitome = config.defaults.epitome
    assert epitome is not None
    assert epitome.in_channels == [Fraction(1), Fraction(1, 2), 64, Crossbars(1)]
    assert epitome.matrices == [Matrix(1024, 256)]
    stored = config.model_dump(mode="json", by_alias=True)
    assert stored["defaults"]["epitome"]["out_channels"] == ["2 crossbars"]
    assert stored["defaults"]["epitome"]["matrices"] == ["1024x256"]
    assert validate(SpaceConfig, stored, "stored") == config
