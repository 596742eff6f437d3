"""Ranges of a layer's inputs: percentiles, fixed and learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from epim_nas import InputError
from epim_nas.epitome.quantization import ActivationQuantizer, Quantization
from epim_nas.epitome.quantization.activations import percentile_step


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("signed", [False, True])
def test_percentile_of_the_magnitudes_is_the_largest_integer(
    percentile: float, signed: bool
) -> None:
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.abs()
    options = Quantization(activation_range="percentile", percentile=percentile)
    quantizer = ActivationQuantizer(4, options)
    out = quantizer(x)
    high = 7 if signed else 15
    expected = np.quantile(x.abs().numpy(), percentile / 100) / high
    assert quantizer.step.item() == pytest.approx(expected, rel=1e-5)
    step = quantizer.step.item()
    assert out.max() <= high * step * (1 + 1e-6)
    inside = x.abs() <= high * step
    assert (out - x)[inside].abs().max() <= step / 2 * (1 + 1e-5)


def test_percentile_of_sparse_inputs_falls_back_to_the_maximum() -> None:
    x = torch.zeros(1000)
    x[0] = 3.0
    assert float(percentile_step(x, 15, 99.0)) == pytest.approx(3.0 / 15)
    assert float(percentile_step(torch.zeros(10), 15, 99.0)) == 1


@pytest.mark.parametrize("learned", [False, True])
def test_only_a_learned_step_is_trained(learned: bool) -> None:
    quantizer = ActivationQuantizer(3, Quantization(learned_activation_step=learned))
    x = torch.rand(64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    quantizer(x).square().sum().backward()
    assert x.grad is not None
    assert (quantizer.step.grad is not None) == learned
    other = ActivationQuantizer(3, Quantization(learned_activation_step=not learned))
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(x), quantizer(x)), "fixed and learned steps have the same state"


def test_wrong_input_is_refused() -> None:
    for bits in (1, 33):
        with pytest.raises(InputError, match="activation_bits"):
            ActivationQuantizer(bits)
    quantizer = ActivationQuantizer(4, Quantization(activation_range="percentile"))
    with pytest.raises(InputError, match="NaN or Inf"):
        quantizer(torch.tensor([1.0, float("nan")]))
