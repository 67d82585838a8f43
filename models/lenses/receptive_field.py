"""The theoretical receptive field: which pixels can change a unit at all, in closed form for every layer of a convolutional net.

Along each axis a unit i of a layer sees the pixels from left + i · stride to right + i · stride. A kernel of k taps, dilation d,
stride s and padding p on top of it widens that and steps further (Araujo, Norris and Sim 2019, "Computing Receptive Fields of
Convolutional Neural Networks"):

    left ← left − p · stride,    right ← right + (d (k − 1) − p) · stride,    stride ← stride · s

Where branches meet, the field is the hull of theirs. The graph is traced, so the branches are the network's own. What looks at a
whole image (attention, pooling to one cell, squeeze-and-excitation) has a field without bounds; norms count as pointwise, as is
usual, although some take their statistics over the image. Windowed and global attention have no closed form here: `support` finds
the pixels that matter by gradient, for any network, and is what the closed form is checked against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from sightline.models.lenses.subject import DoesNotApply

Pair = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """What the first unit along an axis sees, from `left` to `right` (pixels, both included), and how far on the next one looks."""

    left: int = 0
    right: int = 0
    stride: int = 1

    @property
    def size(self) -> int:
        return self.right - self.left + 1

    def under(self, kernel: int, stride: int, padding: Pair, dilation: int) -> Axis:
        """With such a kernel on top; padding before and after."""
        reach = dilation * (kernel - 1)
        return Axis(self.left - padding[0] * self.stride, self.right + (reach - padding[0]) * self.stride, self.stride * stride)

    def hull(self, other: Axis) -> Axis:
        """What two branches see together.

        Raises:
            DoesNotApply: they step by different strides, so that their units do not correspond.
        """
        if self.stride != other.stride:
            raise DoesNotApply(f"branches with strides {self.stride} and {other.stride} meet; their fields have no common form")
        return Axis(min(self.left, other.left), max(self.right, other.right), self.stride)


@dataclass(frozen=True)
class Field:
    """A layer's receptive field, vertically and horizontally; `everywhere` if it is the whole image whatever its size."""

    y: Axis = Axis()
    x: Axis = Axis()
    everywhere: bool = False

    def hull(self, other: Field) -> Field:
        if self.everywhere or other.everywhere:
            return Field(self.y, self.x, everywhere=True)
        return Field(self.y.hull(other.y), self.x.hull(other.x))

    def box(self, unit: Pair, image: Pair) -> tuple[int, int, int, int]:
        """The pixels (top, left, bottom, right; the last two excluded) that a unit of the layer sees of an image of a size."""
        if self.everywhere:
            return 0, 0, *image
        spans = [
            (max(0, axis.left + i * axis.stride), min(side, axis.right + i * axis.stride + 1))
            for axis, i, side in zip((self.y, self.x), unit, image, strict=True)
        ]
        return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


@dataclass(frozen=True)
class Layer:
    """A convolution or pooling: its name in the network, its kind, and the field of its output."""

    name: str
    kind: str
    field: Field


WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
TO_ONE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
OVER_ALL = frozenset({"mean", "amax", "adaptive_avg_pool2d", "scaled_dot_product_attention", "matmul"})
POOLS = frozenset({"avg_pool2d", "max_pool2d"})
# What acts on each place by itself, or changes a tensor's form alone. Whatever is not known to is refused.
POINTWISE_TYPES = (nn.Identity,)
POINTWISE_MODULES = (
    "torch.nn.modules.activation",
    "torch.nn.modules.batchnorm",
    "torch.nn.modules.normalization",
    "torch.nn.modules.instancenorm",
    "torch.nn.modules.dropout",
    "torch.nn.modules.linear",
    "torch.nn.modules.flatten",
    "timm.layers.activations",
    "timm.layers.drop",
    "timm.layers.layer_scale",
    "timm.layers.linear",
    "timm.layers.norm",
    "timm.layers.norm_act",
    "torchvision.ops.misc",
    "torchvision.ops.stochastic_depth",
)
POINTWISE = frozenset(
    [
        "add",
        "iadd",
        "sub",
        "isub",
        "mul",
        "imul",
        "truediv",
        "cat",
        "relu",
        "relu_",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "hardtanh",
        "hardsigmoid",
        "hardswish",
        "relu6",
        "softplus",
        "dropout",
        "layer_norm",
        "batch_norm",
        "flatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "split",
        "chunk",
        "clone",
        "float",
        "to",
        "type_as",
        "getitem",
        "stochastic_depth",
        "drop_path",
    ]
)


def receptive_fields(tower: nn.Module) -> list[Layer]:
    """Every convolution and pooling of a network, in the order in which they run, up to a pooling to a number of cells other than
    one: which pixels those see depends on the image's size.

    Raises:
        DoesNotApply: the network cannot be traced, or does something whose field has no closed form.
    """
    return [layer for layer, shown in _propagate(tower) if shown]


def field_of(tower: nn.Module, name: str) -> Field:
    """The field of a layer's output.

    Raises:
        ValueError: there is no such layer, or no closed form of its field.
    """
    layers = receptive_fields(tower)
    found = next((layer for layer in layers if layer.name == name), None)
    if found is None:
        raise ValueError(f"there is no convolution or pooling {name!r}; choose from {', '.join(layer.name for layer in layers)}")
    return found.field


class _Tracer(fx.Tracer):
    """Modules of torch and timm's smallest ones are taken whole."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._whole = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = not any(isinstance(child, WINDOWED) for child in m.modules()) and not list(m.children())
        return whole or isinstance(m, (*WINDOWED, *self._whole)) or super().is_leaf_module(m, module_qualified_name)


def _propagate(tower: nn.Module) -> Iterator[tuple[Layer, bool]]:
    """Fields along the traced graph: (layer, whether it is a convolution or pooling)."""
    try:
        graph = _Tracer().trace(tower)
    except Exception as error:  # torch.fx raises whatever the network's own code raises on a value that is not there
        why = " ".join(str(error).split())[:160]
        raise DoesNotApply(f"this network cannot be traced ({why}); its field can still be measured by gradient") from error
    fields: dict[fx.Node, Field | None] = {}
    for node in graph.nodes:
        below = [fields[given] for given in node.all_input_nodes]
        seen = [field for field in below if field is not None]
        if node.op == "placeholder":
            fields[node] = Field()
        elif not seen or node.op == "output" or _is_shape(node):
            fields[node] = None
        else:
            field = seen[0]
            for other in seen[1:]:
                field = field.hull(other)
            module = tower.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, TO_ONE) and _pair(module.output_size) != (1, 1):
                return
            fields[node] = field = _through(node, module, field)
            if module is not None:
                yield Layer(str(node.target), type(module).__name__, field), isinstance(module, (*WINDOWED, *TO_ONE))


def _is_shape(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's form and not for its values."""
    return str(node.target) in ("size", "dim", "numel") or (
        node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
    )


def _through(node: fx.Node, module: nn.Module | None, field: Field) -> Field:
    name = type(module).__name__ if module is not None else _name(node)
    everywhere = Field(field.y, field.x, everywhere=True)
    if module is None and name in POOLS:
        given: dict[str, Any] = dict(zip(("kernel_size", "stride", "padding"), node.args[1:], strict=False)) | node.kwargs
        module = nn.AvgPool2d(given["kernel_size"], given.get("stride"), given.get("padding", 0))
    if isinstance(module, WINDOWED):
        if field.everywhere:
            return field
        (ky, kx), (sy, sx), (dy, dx) = _pair(module.kernel_size), _pair(module.stride), _pair(getattr(module, "dilation", 1))
        (py, px) = _paddings(module, (ky, kx), (dy, dx))
        return Field(field.y.under(ky, sy, py, dy), field.x.under(kx, sx, px, dx))
    if isinstance(module, (*TO_ONE, nn.MultiheadAttention)):
        return everywhere
    if module is not None and (type(module).__module__ in POINTWISE_MODULES or isinstance(module, POINTWISE_TYPES)):
        return field
    if module is None and name in OVER_ALL:
        return field if _over_channels(node) else everywhere
    if module is None and name in POINTWISE and _whole_places(node):
        return field
    raise DoesNotApply(f"{node.name} ({name}) has no closed form here; its field can be measured by gradient")


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def _whole_places(node: fx.Node) -> bool:
    """Whether an index leaves places as they are; true of all that is no index."""
    if _name(node) != "getitem":
        return True
    index: Any = node.args[1]
    return isinstance(index, int) or (isinstance(index, tuple) and all(one in (slice(None), Ellipsis) for one in index[1:]))


def _over_channels(node: fx.Node) -> bool:
    """Whether a reduction leaves places apart."""
    axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return axes in (1, (1,), [1])


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _paddings(module: Any, kernel: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Padding before and after, vertically and horizontally.

    Raises:
        DoesNotApply: the padding depends on the image's size.
    """
    if module.padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if module.padding == "valid":
        return (0, 0), (0, 0)
    if type(module).__name__.endswith("Same"):
        raise DoesNotApply("TensorFlow's padding depends on the size of the image; measure the field by gradient")
    y, x = _pair(module.padding)
    return (y, y), (x, x)


def unit_gradient(tower: nn.Module, layer: str, image_BCHW: Tensor, unit: Pair | None = None) -> tuple[Tensor, Pair, Pair]:
    """The gradient of one place of a layer by the pixels (Luo et al. 2016, section 2), of a fixed random mixture of its channels.

    (Their plain sum would not do: after a layer norm it is the same whatever the image.)

    Args:
        layer: a module's name, whose output is a map [B, C, h, w] or [B, h, w, C], or tokens [B, N, C] of a square grid, perhaps
            after a class token; "" for the network's output.
        unit: which place, (row, column); the middle one by default.

    Returns:
        The gradient [B, C, H, W], the place, and the grid's size (h, w).

    Raises:
        ValueError: there is no such layer, or its output has no places.
    """
    kept: list[Tensor] = []
    named = dict(tower.named_modules())
    if layer not in named:
        raise ValueError(f"there is no layer {layer!r}; choose from {', '.join(name for name in named if name)}")
    hook = named[layer].register_forward_hook(lambda module, inputs, output: kept.append(output))
    image_BCHW = image_BCHW.detach().requires_grad_()
    try:
        with torch.enable_grad():
            tower(image_BCHW)
            if not kept or not isinstance(kept[0], Tensor):
                raise ValueError(f"the layer {layer!r} did not run, or gives no tensor")
            places_BChw = as_map(kept[0], layer)
            grid = (places_BChw.shape[2], places_BChw.shape[3])
            row, column = unit or (grid[0] // 2, grid[1] // 2)
            mixture_C = torch.randn(places_BChw.shape[1], generator=torch.Generator().manual_seed(0)).to(image_BCHW)
            (gradient,) = torch.autograd.grad((places_BChw[:, :, row, column] @ mixture_C).sum(), image_BCHW)
    finally:
        hook.remove()
    return gradient, (row, column), grid


def as_map(output: Tensor, layer: str) -> Tensor:
    """[B, C, h, w] of a layer's output, whose channels may come last (as in Swin) if its grid is square.

    Raises:
        ValueError: it has no places.
    """
    if output.ndim == 4:
        _, first, second, third = output.shape
        return output.permute(0, 3, 1, 2) if first == second != third else output  # lenses look at square images
    if output.ndim == 3:
        for prefix in (1, 0, 2, 5):  # a class token, none, a distillation token too, four registers too
            side = round((output.shape[1] - prefix) ** 0.5)
            if side > 1 and side * side == output.shape[1] - prefix:
                return output[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(f"the layer {layer!r} gives {list(output.shape)}, which has no places; choose a layer with a map or tokens")


def support(gradient_BCHW: Tensor) -> tuple[int, int, int, int] | None:
    """The smallest box (top, left, bottom, right; the last two excluded) outside which a gradient is zero; None if it is zero."""
    touched_HW = (gradient_BCHW != 0).any(0).any(0)
    rows, columns = touched_HW.any(1).nonzero(), touched_HW.any(0).nonzero()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
