"""An exported file against PyTorch: valid, and the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.quantization import ActivationQuantizer
from epim_nas.errors import EpimError
from epim_nas.export.onnx.recording import INPUT, OUTPUT, first_line

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-4
"""How far a tensor may be from PyTorch's, relative to the largest magnitude in it.

Both compute in float32 and add in different orders; with depth the differences grow.
"""

BATCHES = (1, 2, 5)
"""Batch sizes that an exported file is compared at."""


@dataclass(frozen=True)
class Comparison:
    """How an exported file agrees with PyTorch, on random inputs of :data:`BATCHES`.

    A quantized activation that lies on a rounding boundary may be rounded to another integer by
    either side. Such flips are followed: PyTorch goes on with the integer of the file, after it
    was checked to be that of an input within :data:`TOLERANCE`.

    Attributes:
        runtime: what ran the file, with its version.
        max_difference: largest difference of an output, flips followed; checked.
        free_difference: the same with each side on its own, so that flips have consequences.
        flips: quantized activations that differed.
        activations: quantized activations that were compared.
    """

    runtime: str
    max_difference: float
    free_difference: float
    flips: int
    activations: int


def check_file(file: Path, content: bytes, path: Path) -> None:
    """Check that a file holds what was written, and that it is valid ONNX.

    Raises:
        EpimError: it does not, or is not.
    """
    import onnx

    if file.read_bytes() != content:
        raise EpimError(f"{path}: what was read back differs from what was written")
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EpimError(f"{path}: is not valid ONNX: {first_line(error)}") from error


def compare(
    model: ModelProto,
    reference: nn.Module,
    recorded: Sequence[str],
    input_shape: Sequence[int],
    path: Path,
) -> Comparison | None:
    """Run a file and PyTorch on random inputs; None where onnxruntime is not installed.

    Raises:
        EpimError: they differ by more than :data:`TOLERANCE`.
    """
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        return None
    from onnx import TensorProto, helper

    for name in dict.fromkeys(recorded):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no common class
        raise EpimError(f"{path}: onnxruntime refuses it: {first_line(error)}") from error
    followed = Followed(reference, path)
    generator = torch.Generator().manual_seed(0)
    worst = free = 0.0
    for batch in BATCHES:
        x = torch.randn(batch, *input_shape, generator=generator)
        try:
            outputs = session.run(None, {INPUT: x.numpy()})
        except Exception as error:
            raise EpimError(
                f"{path}: onnxruntime cannot run it on {batch} inputs: {first_line(error)}"
            ) from error
        named = dict(zip((item.name for item in model.graph.output), outputs, strict=True))
        found = torch.from_numpy(named[OUTPUT])
        with torch.no_grad():
            own = reference(x)
            with followed.by(torch.from_numpy(named[name]) for name in recorded):
                right = reference(x) if recorded else own
        _check_close(found, right, f"{path}: the output for {batch} inputs")
        worst = max(worst, float((found - right).abs().amax()))
        free = max(free, float((found - own).abs().amax()))
    version = f"onnxruntime {runtime.__version__}"
    return Comparison(version, worst, free, followed.flips, followed.activations)


def _check_close(found: Tensor, right: Tensor, what: str) -> None:
    if found.shape != right.shape:
        raise EpimError(f"{what} is {tuple(found.shape)}, that of PyTorch {tuple(right.shape)}")
    difference, allowed = (found - right).abs().amax(), TOLERANCE * right.abs().amax()
    if not difference <= allowed:  # NaN is not close to anything
        raise EpimError(
            f"{what} differs from that of PyTorch by {difference:.3g}; allowed are {allowed:.3g}"
        )


class Followed:
    """Puts the rounded activations of a file in the place of PyTorch's, and counts flips.

    Attributes:
        flips: activations that differed.
        activations: all that were compared.
    """

    def __init__(self, network: nn.Module, path: Path) -> None:
        self.flips = self.activations = 0
        self._given: Iterator[Tensor] = iter(())
        self._path = path
        self._quantizers = {
            name: module.activation
            for name, module in network.named_modules()
            if isinstance(module, (EpitomeConv2d, EpitomeLinear)) and module.activation is not None
        }

    @contextmanager
    def by(self, given: Iterable[Tensor]) -> Iterator[None]:
        """While the block runs, the layers' rounded inputs are these, in the order of the calls."""
        self._given = iter(given)
        hooks = [
            quantizer.register_forward_hook(partial(self._follow, name))
            for name, quantizer in self._quantizers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _follow(
        self, name: str, quantizer: ActivationQuantizer, inputs: tuple[Tensor], own: Tensor
    ) -> Tensor:
        found, (x,), step = next(self._given), inputs, quantizer.step.abs()
        # Rounding does not fall, so that what is between these is the rounding of a close input.
        # Inputs that are all nearly zero differ by more than their own size, and round alike.
        slack = torch.maximum(TOLERANCE * x.abs().amax(), TOLERANCE * step)
        low, high = quantizer.forward(x - slack), quantizer.forward(x + slack)
        inside = (low - step / 100 <= found) & (found <= high + step / 100)
        if not bool(inside.all()):
            raise EpimError(
                f"{self._path}: {int((~inside).sum())} of the {found.numel()} rounded inputs of "
                f"layer `{name}` are not those of PyTorch, nor those of inputs within {slack:.3g}"
            )
        self.flips += int(((found - own).abs() > step / 2).sum())
        self.activations += found.numel()
        return found
