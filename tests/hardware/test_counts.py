"""Crossbar counts: published ones, and the definition by brute force."""

from __future__ import annotations

import math
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import bit_slices, compression, dense_crossbars, load_chip, map_layer
from tests.hardware.nets import bottleneck_resnet, chain, conv

RESNET50, RESNET101 = bottleneck_resnet((3, 4, 6, 3)), bottleneck_resnet((3, 4, 23, 3))


def test_golden_counts():
    weights = sum(math.prod(layer.weight_shape) for layer in RESNET50.weighted)
    assert weights == 25_502_912
    chip = load_chip("epim_256")
    assert dense_crossbars(RESNET50, chip) == 13120
    assert dense_crossbars(RESNET101, chip) == 22912
    sliced = load_chip("epim_256", ["mapping.packing=sliced"])
    assert dense_crossbars(RESNET50, sliced) == 13888
    assert dense_crossbars(RESNET50, sliced, 9) == 3906
    assert dense_crossbars(RESNET50, sliced, 3) == 1302


@pytest.mark.parametrize(
    ("bits", "cell_bits", "polarity", "slices"),
    [(9, 1, 2, 8), (9, 1, 1, 9), (9, 2, 2, 4), (9, 2, 1, 5), (None, 1, 2, 31), (None, 4, 1, 8)],
)
def test_bit_slices(bits, cell_bits, polarity, slices):
    chip = load_chip("epim_256", [f"mapping.cell_bits={cell_bits}", f"mapping.polarity={polarity}"])
    assert bit_slices(bits, chip) == slices


def _brute_force(outputs, channels, cells, slices, size, packed):
    """Count crossbars by laying out columns and channels one by one."""
    row_groups, used = 0, size + 1
    for _ in range(channels):
        if used + cells > size:
            row_groups, used = row_groups + 1, 0
        used += cells
    columns = [(o, s) for o in range(outputs) for s in range(slices)]
    if packed:
        groups = {index // size for index in range(len(columns))}
    else:
        groups = {(s, o // size) for o, s in columns}
    return row_groups * len(groups)


@given(
    st.integers(1, 100),
    st.integers(1, 70),
    st.sampled_from([1, 2, 3, 5]),
    st.integers(2, 9),
    st.booleans(),
)
def test_crossbars_by_brute_force(outputs, channels, kernel, bits, packed):
    packing = "packed" if packed else "sliced"
    chip = load_chip("xbar_64", [f"mapping.packing={packing}"])
    layer = conv("c", "input", channels, outputs, 8, kernel)
    mapping = map_layer(layer, Choice(weight_bits=bits), chip)
    expected = _brute_force(outputs, channels, kernel**2, bits - 1, 64, packed)
    assert mapping.crossbars == expected
    weights = outputs * channels * kernel**2 * (bits - 1)
    assert mapping.utilization == pytest.approx(weights / (expected * 64 * 64))


@given(st.integers(1, 64), st.integers(1, 32), st.sampled_from([3, 4, 5]), st.integers(2, 9))
def test_an_epitome_takes_the_crossbars_of_its_own_matrix(outputs, channels, height, bits):
    chip = load_chip("xbar_64")
    layer = conv("c", "input", 128, 128, 8)
    choice = Choice(EpitomeShape(outputs, channels, height, 3), weight_bits=bits)
    expected = ceil(channels / (64 // (3 * height))) * ceil(outputs * (bits - 1) / 64)
    assert map_layer(layer, choice, chip).crossbars == expected


def test_a_grouped_convolution_kept_dense_is_mapped_as_a_dense_one():
    chip = load_chip("xbar_64")
    grouped, plain = conv("c", "input", 32, 32, 8, groups=32), conv("c", "input", 32, 32, 8)
    of_grouped, of_plain = (map_layer(c, Choice(weight_bits=9), chip) for c in (grouped, plain))
    assert of_grouped.crossbars == of_plain.crossbars
    assert of_grouped.utilization == pytest.approx(of_plain.utilization / 32)


def test_a_depthwise_convolution_by_hand():
    """The last depthwise layer of MobileNetV2, with every number written out by hand."""
    layer, chip = conv("c", "input", 960, 960, 7, groups=960), load_chip("xbar_64")
    dense = map_layer(layer, Choice(weight_bits=9), chip)
    # 64 rows hold 7 channels of 9: 138 row groups. 960 outputs of 8 slices: 120 column groups.
    assert (dense.row_groups, dense.column_groups, dense.crossbars) == (138, 120, 16560)
    assert (dense.rounds, dense.slot_count) == (1, 1)
    assert dense.utilization == pytest.approx(960 * 9 * 8 / (16560 * 4096))
    whole = map_layer(layer, Choice(EpitomeShape(960, 1, 3, 3), weight_bits=9), chip)
    # The same outputs on the 9 rows of one channel. A crossbar has 8 outputs, each a round of its
    # own, and works beside the others: 8 slots.
    assert (whole.row_groups, whole.column_groups, whole.crossbars) == (1, 120, 120)
    assert (whole.rows, whole.columns) == (9, 64)
    assert (whole.rounds, whole.slot_count) == (960, 8)
    assert whole.held_channels == 8
    assert whole.utilization == pytest.approx(960 * 9 * 8 / (120 * 4096))


def test_compression_is_split_into_shape_and_bits():
    network, chip = chain(), load_chip("xbar_64")
    choices = dict(Design.uniform(network, 3, 9).choices)
    choices["c"] = Choice(EpitomeShape(32, 16, 3, 3), weight_bits=3, activation_bits=9)
    result = compression(network, chip, Design("chain", choices))
    dense, at_three = dense_crossbars(network, chip), dense_crossbars(network, chip, 3)
    assert result.bits == pytest.approx(dense / at_three)
    assert result.total == pytest.approx(result.shape * result.bits)
    assert result.shape > 1
    # c: dense ceil(32/7) * ceil(64*2/64) = 10, epitome ceil(16/7) * ceil(32*2/64) = 3
    assert result.total == pytest.approx(dense / (at_three - 10 + 3))


def test_a_kernel_larger_than_a_crossbar_is_refused():
    chip = load_chip("xbar_64")
    with pytest.raises(InputError, match=r"takes 81 rows, a crossbar of xbar_64 has 64"):
        map_layer(conv("c", "input", 3, 8, 32, kernel=9), Choice(), chip)
