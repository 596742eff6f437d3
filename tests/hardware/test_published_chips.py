"""The presets of published accelerators: counts by hand, and numbers of the publications."""

from __future__ import annotations

import pytest

from epim_nas.epitome.design import Choice
from epim_nas.hardware import CostModel, bit_slices, load_chip, map_layer
from epim_nas.network.spec import Network
from tests.hardware.nets import bottleneck_resnet, conv

POSITIONS = 16


def full_crossbar(rows, outputs):
    """A 1x1 convolution on 4x4 positions."""
    layer = conv("c", "input", rows, outputs, 4, kernel=1)
    return Network("one", (layer,), (rows, 4, 4))


def test_isaac_counts():
    chip = load_chip("isaac_128")
    # 16 bits in cells of 2; the sign is one of them.
    assert bit_slices(16, chip) == 8
    # 14 channels of 9 rows a crossbar: 5 row groups. 64 outputs of 8 cells: 4 column groups.
    mapping = map_layer(conv("c", "input", 64, 64, 8), Choice(weight_bits=16), chip)
    assert (mapping.row_groups, mapping.column_groups, mapping.crossbars) == (5, 4, 20)
    assert mapping.tiles == 3  # IMAs of 8


def test_isaac_has_the_energy_and_area_of_its_table():
    """Table I of the publication, for an IMA: power x 100 ns for each of 16 input bits."""
    cost = CostModel(full_crossbar(128, 16), load_chip("isaac_128")).evaluate(
        weight_bits=16, activation_bits=16
    )
    layer = cost.layers[0]
    assert (layer.crossbars, layer.utilization) == (1, 1.0)
    bits = POSITIONS * 16
    for component, ima_mw in (("ADC", 16), ("DAC", 4), ("xbar", 2.4)):
        crossbar_nj = ima_mw / 8 * 1e-3 * 100
        assert layer.energy_nj[component] == pytest.approx(bits * crossbar_nj, rel=1e-3)
        assert layer.latency_ns[component] == pytest.approx(bits * 100, rel=1e-3)
    for component, ima_mm2 in (("ADC", 0.0096), ("DAC", 0.00017), ("xbar", 0.0002)):
        assert layer.area_um2[component] == pytest.approx(ima_mm2 * 1e6, rel=1e-3)
    assert layer.area_um2["jointmodule"] == pytest.approx(240, rel=1e-3)


def test_isaac_as_published_holds_a_16_bit_resnet50():
    chip = load_chip("isaac_128", ["mesh.size=[42,48]", "mesh.order=serpentine"])
    assert chip.mesh.size[0] * chip.mesh.size[1] == 168 * 12
    CostModel(bottleneck_resnet((3, 4, 6, 3)), chip).evaluate(weight_bits=16, activation_bits=16)


def test_raella_counts():
    chip = load_chip("raella_512")
    # 8-bit weights take the three cells (4, 2, 2 bits) that most layers of RAELLA have.
    assert bit_slices(8, chip) == 3
    # 56 channels of 9 rows a crossbar: 2 row groups. 64 outputs of 3 cells: 1 column group.
    mapping = map_layer(conv("c", "input", 64, 64, 8), Choice(weight_bits=8), chip)
    assert (mapping.row_groups, mapping.column_groups, mapping.crossbars) == (2, 1, 2)
    assert mapping.tiles == 1  # macro of 4


def test_raella_has_the_conversions_of_its_model():
    """1.42 pJ a 7-bit conversion; a crossbar's 512 columns in 100 ns, for each of 8 input bits."""
    cost = CostModel(full_crossbar(512, 170), load_chip("raella_512")).evaluate(
        weight_bits=8, activation_bits=8
    )
    layer = cost.layers[0]
    assert layer.crossbars == 1
    conversions = POSITIONS * 8 * 170 * 3
    assert layer.energy_nj["ADC"] == pytest.approx(conversions * 1.42e-3, rel=1e-3)
    assert layer.latency_ns["ADC"] == pytest.approx(POSITIONS * 8 * 100, rel=1e-3)
    # Four ADCs a crossbar of 845.18 um2; a macro has four crossbars.
    assert layer.area_um2["ADC"] == pytest.approx(16 * 845.18, rel=1e-3)
    # 512 x 512 pairs of cells of 5.49 F^2 at 32 nm.
    pairs = 4 * 512 * 512 * 2 * 5.490116 * 0.032**2
    assert layer.area_um2["xbar"] == pytest.approx(pairs, rel=1e-3)


@pytest.mark.parametrize("name", ["isaac_128", "raella_512"])
def test_the_meshes_hold_a_dense_32_bit_resnet101(name):
    """A search measures against the dense network in 32 bits."""
    cost = CostModel(bottleneck_resnet((3, 4, 23, 3)), load_chip(name)).evaluate(weight_bits=32)
    assert cost.totals.latency_ns > 0
