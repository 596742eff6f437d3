"""The nodes and tables that sample a layer's weight from its epitome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.plan import IntArray, Order, Patch, SamplingPlan
from epim_nas.errors import EpimError
from epim_nas.export.onnx.recording import OPSET, Layer, dotted

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

T = TypeVar("T")
Array = npt.NDArray[Any]

NODE_BYTES = 150
"""About what a node adds to a file: a table is computed only where that is smaller."""


def tensor_of(name: str, values: Array) -> TensorProto:
    """An initialiser."""
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(values), name)


class Sampling:
    """The nodes that sample a layer's weight from its epitome.

    A *column* is what one input channel of a patch reads: (Op, Kh, Kw) elements. The patches of an
    epitome have few starts along its outputs (``rows``) and few positions in its height and width
    (``windows``), so that it is cut into all columns there are by two small tables. A weight is
    then one number of a column for each input channel of each output slab that differs from others
    (``columns``), and one number of a row for each of its output channels (``outputs``). Rotations
    and orders of the inputs are in the numbers of columns; wrapping and the order of the outputs
    in those of rows.

    Attributes:
        nodes: the nodes, in the order of computation; the last one's output is the weight.
        data: the epitome, and its steps where it is stored as integers.
        tables: the index tables, in the smallest integers that hold them.
    """

    def __init__(self, layer: Layer) -> None:
        self.nodes: list[NodeProto] = []
        self.data: dict[str, TensorProto] = {}
        self.tables: dict[str, TensorProto] = {}
        self._layer = layer
        self._shape: tuple[int, ...] = layer.values.shape
        value = self._samples(self._values())
        if self._shape != layer.weight.shape:
            value = self._reshape(value, layer.weight.shape)
        if self.nodes:
            self.nodes[-1].output[0] = layer.weight_name
        else:  # the epitome is the weight
            self.data[value].name = layer.weight_name

    def check(self) -> None:
        """Compute the weight with ONNX's own evaluator and compare it, bit for bit.

        Raises:
            EpimError: it differs.
        """
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator

        name, right = self._layer.weight_name, self._layer.weight
        tensors = [*self.data.values(), *self.tables.values()]
        nodes = [*self.nodes, helper.make_node("Identity", [name], ["found"])]
        output = helper.make_tensor_value_info("found", TensorProto.FLOAT, right.shape)
        graph = helper.make_graph(nodes, "weight", [], [output], tensors)
        opset = helper.make_opsetid("", OPSET)
        (found,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset])).run(None, {})
        if not np.array_equal(found, right):
            raise EpimError(f"model: {name}: what is sampled in ONNX is not the layer's weight")

    def _values(self) -> str:
        """The epitome in float32."""
        layer = self._layer
        value = self._store("epitome", layer.values)
        if layer.steps is None:
            return value
        return self._node("Mul", self._float(value), self._steps(layer.steps))

    def _steps(self, steps: Array) -> str:
        """The steps, of each crossbar once and spread by the blocks of the channels."""
        inverses: list[tuple[int, IntArray]] = []
        for axis in (0, 1):
            few, inverse = np.unique(steps, axis=axis, return_inverse=True)
            if (steps.size - few.size) * steps.itemsize > 2 * NODE_BYTES:
                steps = few
                inverses.append((axis, inverse.ravel()))
        value = self._store("step", steps)
        for axis, inverse in reversed(inverses):
            value = self._gather(value, self._table(f"blocks{axis}", inverse), axis)
        return value

    def _samples(self, value: str) -> str:
        """The weight (O, I/groups, Kh, Kw) from the epitome."""
        plan = self._layer.plan
        out_channels, in_channels, height, width = plan.shape.as_tuple
        kernel, patch_out = plan.conv_shape[2:], plan.patch[0]
        starts = _numbered(patch.source_out for patch in plan.patches)
        corners = _numbered((patch.top, patch.left) for patch in plan.patches)
        # Output slabs that read the same elements are sampled once.
        slab_keys = [_slab(plan, number) for number in range(plan.out_slabs)]
        slabs = _numbered(slab_keys)

        if kernel != (height, width):
            first = np.array([top * width + left for top, left in corners])
            inside = np.arange(kernel[0])[:, None] * width + np.arange(kernel[1])
            value = self._reshape(value, (out_channels, in_channels, height * width))
            value = self._gather(value, self._table("windows", first[:, None] + inside.ravel()), 2)
        if list(starts) != [0] or patch_out != out_channels:
            rows = np.arange(patch_out)[:, None] + np.array([*starts])
            value = self._gather(value, self._table("rows", rows), 0)
        count = len(starts) * in_channels * len(corners)
        if kernel != (height, width) or list(starts) != [0] or patch_out != out_channels:
            value = self._reshape(value, (patch_out, count, *kernel))

        columns = Columns.of(plan, [*slabs], starts, corners)
        table = columns.table()
        if len(table) > 1 or not np.array_equal(table[0], np.arange(count)):
            value = self._gather(value, self._column_numbers(columns, table), 1)
        if len(slabs) > 1:
            value = self._reshape(value, (patch_out * len(slabs), *plan.conv_shape[1:]))
        outputs = np.empty(plan.conv_shape[0], dtype=np.int64)
        slab, row = np.divmod(np.arange(len(outputs)), patch_out)
        numbers = np.array([slabs[key] for key in slab_keys])[slab]
        order = slice(None) if plan.out_order is None else [*plan.out_order]
        outputs[order] = row * len(slabs) + numbers
        if not np.array_equal(outputs, np.arange(patch_out * len(slabs))):
            value = self._gather(value, self._table("outputs", outputs), 0)
        self._shape = plan.conv_shape
        return value

    def _column_numbers(self, columns: Columns, table: IntArray) -> str:
        """The table, or the nodes that compute it from the few numbers of the patches."""
        few = 2 * columns.base.size + columns.width + table.shape[1]
        computed = 2 * few + 8 * NODE_BYTES
        # Orders that differ by slab are nothing but such a table.
        if len(columns.order) > 1 or _smallest(table).nbytes <= computed:
            return self._table("columns", table if len(table) > 1 else table[0])
        places = np.arange(columns.width)
        if columns.rotation.any():
            turned = self._node(
                "Add",
                self._table("rotations", columns.rotation[..., None]),
                self._table("places", places),
            )
            turned = self._node("Mod", turned, self._number(columns.width))
            place = self._node("Mul", turned, self._number(columns.stride))
        else:
            place = self._table("places", places * columns.stride)
        value = self._node("Add", self._table("patches", columns.base[..., None]), place)
        shape = (-1,) if len(table) == 1 else (len(table), -1)
        value = self._reshape(value, shape)
        order = columns.order[0]
        if np.array_equal(order, np.arange(columns.base.shape[1] * columns.width)):
            return value
        return self._gather(value, self._table("inputs", order), len(shape) - 1)

    # Nodes and tensors.

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = dotted(self._layer.name, f"w{len(self.nodes)}")
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _store(self, part: str, values: Array) -> str:
        name = dotted(self._layer.name, part)
        self.data[name] = tensor_of(name, values)
        return name

    def _table(self, part: str, numbers: IntArray) -> str:
        """A table of numbers from 0, as an int32 tensor."""
        from onnx import TensorProto

        name = dotted(self._layer.name, part)
        few, whole = _smallest(numbers), numbers.astype(np.int32)
        narrow = whole.nbytes - few.nbytes > NODE_BYTES
        self.tables[name] = tensor_of(name, few if narrow else whole)
        return self._node("Cast", name, to=TensorProto.INT32) if narrow else name

    def _number(self, number: int) -> str:
        name = dotted(self._layer.name, f"number{number}")
        self.tables[name] = tensor_of(name, np.array(number, dtype=np.int32))
        return name

    def _reshape(self, value: str, shape: Sequence[int]) -> str:
        name = dotted(self._layer.name, "shape" + "x".join(map(str, shape)))
        self.tables[name] = tensor_of(name, np.array(shape, dtype=np.int64))
        return self._node("Reshape", value, name)

    def _gather(self, value: str, index: str, axis: int) -> str:
        return self._node("Gather", value, index, axis=axis)

    def _float(self, value: str) -> str:
        from onnx import TensorProto

        return self._node("Cast", value, to=TensorProto.FLOAT)


_SlabKey = tuple[tuple[Patch, ...], Order | None]
"""What an output slab reads: its patches, at the place of the first slab, and its inputs' order."""


@dataclass(frozen=True)
class Columns:
    """The columns of the slabs: number = base + stride * ((place + rotation) % width).

    Attributes:
        base: (slabs, patches of a slab) number of a patch's first column.
        rotation: of the same shape, in places.
        stride: between the columns of neighbouring input channels.
        width: Ip, the places of a patch.
        order: per slab, or one for all, the places in the order of the weight's input channels.
    """

    base: IntArray
    rotation: IntArray
    stride: int
    width: int
    order: IntArray

    @classmethod
    def of(
        cls,
        plan: SamplingPlan,
        slabs: Sequence[_SlabKey],
        starts: Mapping[int, int],
        corners: Mapping[tuple[int, int], int],
    ) -> Columns:
        """The tables of a plan, with numbers of corners from a function."""

        def first(patch: Patch) -> int:
            channel = starts[patch.source_out] * plan.shape.in_channels + patch.source_in
            return channel * len(corners) + corners[patch.top, patch.left]

        # The last patch may reach beyond the weight's channels: they come behind all others.
        channels = tuple(range(plan.conv_shape[1]))
        orders = [channels if order is None else order for _, order in slabs]
        orders = orders[:1] if len(set(orders)) == 1 else orders
        return cls(
            np.array([[first(patch) for patch in patches] for patches, _ in slabs]),
            np.array([[patch.rotation for patch in patches] for patches, _ in slabs]),
            len(corners),
            plan.patch[1],
            np.array([np.argsort(order) for order in orders]),
        )

    def table(self) -> IntArray:
        """(slabs, I/groups) the column of every input channel."""
        places = (np.arange(self.width) + self.rotation[..., None]) % self.width
        numbers = (self.base[..., None] + self.stride * places).reshape(len(self.base), -1)
        found: IntArray = np.take_along_axis(numbers, self.order, axis=1)
        return found


def _slab(plan: SamplingPlan, number: int) -> _SlabKey:
    patches = plan.patches[number * plan.in_slabs : (number + 1) * plan.in_slabs]
    same = tuple(replace(patch, target_out=0, out_channels=0) for patch in patches)
    return same, None if plan.in_order is None else plan.in_order[number]


def _numbered(items: Iterable[T]) -> dict[T, int]:
    """Every item once, with its number in the order of appearance."""
    return {item: number for number, item in enumerate(dict.fromkeys(items))}


def _smallest(numbers: IntArray) -> Array:
    """Numbers from 0 in the smallest of the types that they fit."""
    types = (np.uint8, np.uint16, np.int32)
    return numbers.astype(next(t for t in types if numbers.max() <= np.iinfo(t).max))
