"""The weight-sharing supernet: one set of dense weights, every choice a projection of them.

A choice's weight is ``expand(quantize(project(W)))``, so an untrained supernet is exactly the
pretrained network under each design, and a training step of one design moves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from epim_nas.epitome.alignment import AlignmentSearch
from epim_nas.epitome.convert import apply_design
from epim_nas.epitome.design import Choice
from epim_nas.epitome.functional import epitome_conv2d, epitome_linear
from epim_nas.epitome.layers import _EpitomeLayer
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization import (
    ActivationQuantizer,
    Quantization,
    QuantizationRule,
    quantization_for,
    quantize_weight,
)
from epim_nas.epitome.sampling import project
from epim_nas.errors import InputError
from epim_nas.files import safe_name
from epim_nas.network.modules import clone
from epim_nas.network.spec import Network
from epim_nas.space.space import SearchSpace
from epim_nas.supernet.alignments import align_plans
from epim_nas.supernet.starts import output_offsets

_DEFAULT_QUANTIZATION = Quantization()


class SuperLayer(nn.Module):
    """A convolution or linear layer that can take any of its choices.

    Args:
        dense: the layer with the shared dense weight.
        choices: what it can be.
        plans: the sampling plan of every choice.
        quantization: how weights and inputs are quantized. The weights' steps follow the rule
            even where they are to be learned: a step of its own for every choice would be trained
            by the few steps that select it.
        offsets: plan -> what is added to the projection of the weight
            (:func:`~epim_nas.supernet.starts.output_offsets`); nothing by default.

    Attributes:
        dense: the layer with the shared dense weight.
        choices: what it can be.
        active: index of the current choice, None for the dense floating-point layer.
        held: the quantized epitome of the current choice while its weights do not change
            (:meth:`Supernet.frozen`).
        activations: one input quantizer per number of bits.
    """

    def __init__(
        self,
        dense: nn.Conv2d | nn.Linear,
        choices: Sequence[Choice],
        plans: Sequence[SamplingPlan],
        quantization: Quantization | QuantizationRule = _DEFAULT_QUANTIZATION,
        offsets: Mapping[SamplingPlan, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.dense = dense
        self.choices = tuple(choices)
        self.plans = tuple(plans)
        self.active: int | None = None
        self.held: Tensor | None = None
        self._options = [
            quantization_for(quantization, plan, choice.weight_bits)
            for plan, choice in zip(plans, self.choices, strict=True)
        ]
        bits = sorted({c.activation_bits for c in choices if c.activation_bits is not None})
        self.activations = nn.ModuleDict(
            {str(b): ActivationQuantizer(b, self._options[0]) for b in bits}
        )
        self._offset_of: dict[SamplingPlan, str] = {}
        for plan, offset in (offsets or {}).items():
            # Not in the state: it follows from the float network, as the plans do.
            self._offset_of[plan] = f"offset_{len(self._offset_of)}"
            self.register_buffer(self._offset_of[plan], offset, persistent=False)

    def unquantized(self, index: int) -> Tensor:
        """(Oe, Ie, He, We) of a choice before quantization; differentiable in the dense weight.

        The projection of the shared weight, plus a constant where the choices start from the
        projection onto outputs: that is linear in the weight as well, but takes a solver.
        """
        plan = self.plans[index]
        epitome = project(self.dense.weight.reshape(plan.conv_shape), plan)
        name = self._offset_of.get(plan)
        return epitome if name is None else epitome + self.get_buffer(name)

    def epitome(self, index: int) -> Tensor:
        """(Oe, Ie, He, We) of a choice, quantized; differentiable in the dense weight."""
        bits, options = self.choices[index].weight_bits, self._options[index]
        return quantize_weight(self.unquantized(index), bits, self.plans[index], options)

    def quantize_input(self, x: Tensor, index: int) -> Tensor:
        """The layer's input as a choice sees it."""
        bits = self.choices[index].activation_bits
        return x if bits is None else self.activations[str(bits)](x)

    def run(self, x: Tensor, index: int) -> Tensor:
        """The layer's output under a choice, for an input that is quantized already."""
        epitome = self.epitome(index) if self.held is None else self.held
        plan = self.plans[index]
        if isinstance(self.dense, nn.Conv2d):
            return epitome_conv2d(self.dense, x, epitome, plan)
        return epitome_linear(self.dense.bias, x, epitome, plan)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output under the active choice."""
        if self.active is None:
            return self.dense(x)
        return self.run(self.quantize_input(x, self.active), self.active)


class Supernet(nn.Module):
    """A network in which every layer of a search space is a :class:`SuperLayer`.

    Args:
        model: the trained dense network; it is copied.
        network: its traced geometry.
        space: the search space; its layers are module paths of ``model``.
        quantization: how weights and inputs are quantized, or a rule that says it of each choice.
        align: order the channels of every choice so that it fits the trained weights best; how
            long to search for the order, None to keep the network's own.
        covariances: layer -> covariance of its inputs in the float network
            (:func:`~epim_nas.epitome.statistics.input_covariances`): its choices start from the
            projection onto the layer's outputs.
        alignments: folder in which the orders and starts of finished layers are kept, so that an
            interrupted search for them goes on.
        progress: called with how many choices are done; those that are aligned and then projected
            onto outputs count twice.

    Raises:
        InputError: a layer has NaN or Inf in its weight, or its choices cannot be quantized so.
    """

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        space: SearchSpace,
        quantization: Quantization | QuantizationRule = _DEFAULT_QUANTIZATION,
        align: AlignmentSearch | None = None,
        *,
        covariances: Mapping[str, Tensor] | None = None,
        alignments: Path | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        super().__init__()
        self.space = space
        self.quantization = quantization
        self.model = clone(model)
        self.layers: dict[str, SuperLayer] = {}
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done)

        for name, choices in space.layer_choices.items():
            file = safe_name(name)  # of a module: it may hold a path
            module = self.model.get_submodule(name)
            assert isinstance(module, (nn.Conv2d, nn.Linear)), name
            plans = [choice.plan(network[name]) for choice in choices]
            try:
                if align is not None:
                    plans = align_plans(
                        module.weight.detach().double().cpu().numpy(), plans, align,
                        file=None if alignments is None else alignments / f"{file}.npz",
                        progress=advance,
                    )  # fmt: skip
                offsets = None
                if covariances is not None and name in covariances:
                    offsets = output_offsets(
                        module.weight, plans, covariances[name],
                        file=None if alignments is None else alignments / f"{file}.start.npz",
                        progress=advance,
                    )  # fmt: skip
                layer = SuperLayer(module, choices, plans, quantization, offsets)
            except InputError as error:
                raise InputError(
                    f"layer {name}: {error.field}", error.problem, error.allowed, error.hint
                ) from None
            self.layers[name] = layer
            parent, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(parent), last, layer)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output under the selected design."""
        output: Tensor = self.model(x)
        return output

    def select(self, row: Sequence[int] | None) -> None:
        """Switch to a design (a row of the space), or to the dense float network (None)."""
        for position, group in enumerate(self.space.groups):
            for name in group.layers:
                self.layers[name].active = None if row is None else row[position]

    @contextmanager
    def selected(self, row: Sequence[int] | None) -> Iterator[Supernet]:
        """Select a design within a ``with`` block."""
        before = {name: layer.active for name, layer in self.layers.items()}
        self.select(row)
        try:
            yield self
        finally:
            for name, layer in self.layers.items():
                layer.active = before[name]

    @contextmanager
    def frozen(self, row: Sequence[int]) -> Iterator[Supernet]:
        """Select a design to measure it: its epitomes are computed once, without gradients."""
        with self.selected(row), torch.no_grad():
            try:
                for layer in self.layers.values():
                    assert layer.active is not None
                    layer.held = layer.epitome(layer.active)
                yield self
            finally:
                for layer in self.layers.values():
                    layer.held = None

    @torch.no_grad()
    def calibrate_activations(self, images: Tensor) -> None:
        """Set the steps of all input quantizers from the float network's activations.

        Args:
            images: (N, C, H, W), augmented training images.
        """

        def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, SuperLayer)
            for quantizer in layer.activations.values():
                assert isinstance(quantizer, ActivationQuantizer)
                quantizer.calibrate(inputs[0])

        training = self.training
        hooks = [layer.register_forward_pre_hook(observe) for layer in self.layers.values()]
        try:
            with self.selected(None):
                self.eval()(images)
        finally:
            for hook in hooks:
                hook.remove()
            self.train(training)

    def extract(self, row: Sequence[int]) -> nn.Module:
        """The stand-alone network of a design, started from the supernet's weights."""
        dense = clone(self.model)
        for name in self.layers:
            layer = dense.get_submodule(name)
            assert isinstance(layer, SuperLayer)
            parent, _, last = name.rpartition(".")
            setattr(dense.get_submodule(parent), last, layer.dense)
        model = apply_design(
            dense, self.space.design(row), inplace=True, quantization=self.quantization
        )
        choices: Mapping[str, Choice] = self.space.design(row).choices
        for name, choice in choices.items():
            layer = model.get_submodule(name)
            if not isinstance(layer, _EpitomeLayer):
                continue
            source_layer = self.layers[name]
            index = source_layer.choices.index(choice)
            plan = source_layer.plans[index]
            if plan != layer.plan:
                layer.reorder(plan.out_order, plan.in_order)
            with torch.no_grad():
                layer.epitome.copy_(source_layer.unquantized(index))
            if choice.activation_bits is not None:
                assert layer.activation is not None
                source = source_layer.activations[str(choice.activation_bits)]
                layer.activation.load_state_dict(source.state_dict())
        return model
