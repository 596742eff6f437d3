"""Models by name: the built-in ones, other libraries', and the user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from epim_nas.errors import InputError, missing_extra, nearest
from epim_nas.imports import here_importable, import_module_here
from epim_nas.models._torchvision import import_torchvision

if TYPE_CHECKING:
    from torch import nn

_CIFAR = (3, 32, 32)
_IMAGENET = (3, 224, 224)

_BUILT_IN: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    **{
        f"resnet{depth}": ("resnet_cifar:cifar_resnet", {"depth": depth}, _CIFAR)
        for depth in (20, 32, 44, 56, 110)
    },
    **{
        f"resnet{depth}": ("resnet:resnet", {"depth": depth}, _IMAGENET)
        for depth in (18, 34, 50, 101, 152)
    },
    **{f"vgg{depth}": ("vgg:vgg", {"depth": depth}, _IMAGENET) for depth in (11, 13, 16, 19)},
    **{
        f"vgg{depth}_bn": ("vgg:vgg", {"depth": depth, "batch_norm": True}, _IMAGENET)
        for depth in (11, 13, 16, 19)
    },
}
"""Name -> (module and function in this package, its fixed arguments, default input shape)."""

LIBRARIES = ("torchvision", "timm")
"""What stands before the colon of a model's name where it is no module of the user."""

_FIELD = "model"
_FORMS = "a built-in name, `torchvision:NAME`, `timm:NAME` or `package.module:function`"


def model_names() -> list[str]:
    """Names of the built-in models, by family and depth."""
    return sorted(_BUILT_IN, key=lambda name: (name[:3], int("".join(filter(str.isdigit, name)))))


def default_input_shape(spec: str) -> tuple[int, int, int]:
    """The usual (channels, height, width) of a model's images.

    3x32x32 for the CIFAR networks, 3x224x224 for all others; a default, not a demand.

    Raises:
        InputError: a built-in name that does not exist.
    """
    if ":" in spec:
        return _IMAGENET
    return _built_in(spec)[2]


def build_model(
    spec: str, *, in_channels: int, num_classes: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """A freshly initialised model.

    Args:
        spec: a built-in name (:func:`model_names`), ``torchvision:NAME``, ``timm:NAME``, or
            ``package.module:function``. The function may also live in the current working
            directory; it gets ``in_channels`` and ``num_classes`` where it has such parameters,
            and ``args``, and returns a ``torch.nn.Module``.
        in_channels: channels of the images.
        num_classes: classes.
        args: further keyword arguments of the model's constructor or function.

    Raises:
        InputError: no such model, wrong arguments, a missing package, or a function that does
            not return a module.
    """
    for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{_FIELD}.{name}", f"got `{value!r}`", "a positive integer")
    extra = dict(args or {})
    library, separator, name = spec.partition(":")
    if not separator:
        target, fixed, _ = _built_in(spec)
        module, function = target.split(":")
        factory = getattr(importlib.import_module(f"epim_nas.models.{module}"), function)
        given = {**fixed, "in_channels": in_channels, "num_classes": num_classes}
        return _call(spec, factory, given, extra)
    if library == "torchvision":
        return _torchvision_model(name, in_channels, num_classes, extra)
    if library == "timm":
        return _timm_model(name, in_channels, num_classes, extra)
    return _user_model(spec, library, name, in_channels, num_classes, extra)


def _built_in(name: str) -> tuple[str, dict[str, Any], tuple[int, int, int]]:
    if name not in _BUILT_IN:
        known = model_names()
        raise InputError(
            _FIELD,
            f"`{name}` is not a known model",
            f"{_FORMS}; built in are " + ", ".join(f"`{other}`" for other in known),
            nearest(name, known),
        )
    return _BUILT_IN[name]


def _torchvision_model(
    name: str, in_channels: int, num_classes: int, args: dict[str, Any]
) -> nn.Module:
    torchvision = import_torchvision(f"the model torchvision:{name}")
    known = torchvision.models.list_models(module=torchvision.models)
    _check_known(f"torchvision:{name}", name, known, "torchvision classification model")
    with _library_errors(f"torchvision:{name}"):
        options = {"weights": None, "num_classes": num_classes, **args}
        model = torchvision.models.get_model(name, **options)
    if in_channels != 3:
        _replace_first_conv(f"torchvision:{name}", model, in_channels)
    return model


def _timm_model(name: str, in_channels: int, num_classes: int, args: dict[str, Any]) -> nn.Module:
    # timm imports torchvision, which may need help.
    import_torchvision(f"the model timm:{name}")
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise missing_extra("timm", "vision", f"the model timm:{name}") from None
    _check_known(f"timm:{name}", name.partition(".")[0], timm.list_models(), "timm model")
    with _library_errors(f"timm:{name}"):
        options = {"pretrained": False, "in_chans": in_channels, "num_classes": num_classes, **args}
        return timm.create_model(name, **options)


def _user_model(
    spec: str, module: str, function: str, in_channels: int, num_classes: int, args: dict[str, Any]
) -> nn.Module:
    if not module or not function:
        raise InputError(_FIELD, f"got `{spec}`", _FORMS)
    with here_importable():
        factory: Any = import_module_here(module, f"{_FIELD}: {spec}", _FORMS)
        for part in function.split("."):
            if not hasattr(factory, part):
                public = [name for name in vars(factory) if not name.startswith("_")]
                raise InputError(
                    _FIELD, f"`{module}` has no `{function}`", "", nearest(part, public)
                )
            factory = getattr(factory, part)
        if not callable(factory):
            raise InputError(_FIELD, f"`{spec}` is not a function", _FORMS)
        parameters = inspect.signature(factory).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        offered = {"in_channels": in_channels, "num_classes": num_classes}
        given = {key: value for key, value in offered.items() if takes_any or key in parameters}
        return _call(spec, factory, given, args)


def _call(
    spec: str, factory: Callable[..., Any], given: dict[str, Any], args: dict[str, Any]
) -> nn.Module:
    """Call a model function after its arguments were checked against its signature."""
    from torch import nn

    signature = inspect.signature(factory)
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in args:
        if key in given:
            raise InputError(
                f"{_FIELD}.args.{key}",
                f"`{spec}` already has {key} {given[key]}",
                hint="Leave it out; the model's name and the data decide it.",
            )
    if not takes_any:
        for key in args:
            if key not in parameters:
                free = [name for name in parameters if name not in given]
                raise InputError(
                    f"{_FIELD}.args.{key}",
                    f"`{spec}` has no such argument",
                    ", ".join(f"`{name}`" for name in free) or "none",
                    nearest(key, free),
                )
    try:
        bound = signature.bind(**{**given, **args})
    except TypeError as error:
        raise InputError(
            f"{_FIELD}.args", f"`{spec}`: {error}", "", f"Its signature is {signature}."
        ) from None
    with _library_errors(spec):
        model = factory(*bound.args, **bound.kwargs)
    if not isinstance(model, nn.Module):
        raise InputError(_FIELD, f"`{spec}` returned a {type(model).__name__}", "a torch.nn.Module")
    return model


def _check_known(spec: str, name: str, known: list[str], what: str) -> None:
    if name not in known:
        raise InputError(_FIELD, f"`{spec}` is not a known {what}", "", nearest(name, known))


@contextmanager
def _library_errors(spec: str) -> Iterator[None]:
    """Any failure of a model's constructor is about the arguments that the user gave."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            _FIELD,
            f"`{spec}` cannot be built: {type(error).__name__}: {error}",
            hint="Check the model's arguments (`model.args`).",
        ) from error


def without_downloads(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model's constructor that do not make a library fetch trained weights."""
    if not name.startswith(("torchvision:", "timm:")):
        return dict(args)
    return {key: value for key, value in args.items() if key not in ("weights", "pretrained")}


def _replace_first_conv(spec: str, model: nn.Module, in_channels: int) -> None:
    """Put a freshly initialised first convolution for another number of image channels."""
    from torch import nn

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.groups != 1:
                break
            parent, _, child = path.rpartition(".")
            replacement = nn.Conv2d(
                in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                bias=module.bias is not None,
                padding_mode=module.padding_mode,
            )
            nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
            setattr(model.get_submodule(parent), child, replacement)
            return
    raise InputError(
        _FIELD,
        f"`{spec}` has no plain first convolution to adapt to {in_channels} image channels",
        "3 channels",
        "Give a `package.module:function` that builds it.",
    )
