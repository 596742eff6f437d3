"""Validation of everything that comes from outside, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from epim_nas.documents import MOST_LEVELS, InvalidValue, parse_yaml, yaml_problem
from epim_nas.errors import InputError, nearest
from epim_nas.files import read_bytes
from epim_nas.stored import check_stored

STORED = "stored"
"""Validation context of a run file that is only read: nothing that it names is imported."""


class Strict(pydantic.BaseModel):
    """A pydantic model that is immutable and refuses unknown keys and silent conversions."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return value


Number = Annotated[Any, pydantic.AfterValidator(_number)]
"""A number as it is: whole ones stay whole."""

M = TypeVar("M", bound=pydantic.BaseModel)
T = TypeVar("T")


def validate(model: type[M], data: Any, source: str, context: Any = None) -> M:
    """``data`` as an instance of ``model``.

    Args:
        model: the pydantic model.
        data: what was read, e.g. from a YAML file.
        source: the file or option it came from, for the message.
        context: for the model's own validators.

    Raises:
        InputError: with the dotted path of the first wrong field, what was got, what is allowed,
            and for an unknown key the nearest known one.
    """
    if not isinstance(data, Mapping):
        raise InputError(source, f"got {describe(data)}", f"a mapping with the keys {_keys(model)}")
    try:
        return model.model_validate(dict(data), context=context)
    except pydantic.ValidationError as failure:
        raise _first_error(model, data, failure, source) from None
    except RecursionError:
        raise InputError(source, "is nested too deeply", "a few levels") from None


def load_json_as(path: Path, kind: type[T], hint: str) -> T:
    """The content of a JSON file that was stored as a type of plain values.

    Args:
        path: the file, in a folder all of whose files were stored (:mod:`epim_nas.stored`).
        kind: such as ``dict[str, float]``, a TypedDict or a dataclass.
        hint: what to do where it is damaged.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    content = read_bytes(path)
    try:
        value = pydantic.TypeAdapter(kind).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise InputError(str(path), f"is damaged ({reason})", hint=hint) from None
    check_stored(path, hint, path.parent)  # after what can be said of the fault itself
    return value


def describe(value: Any) -> str:
    """A short description of a value for an error message."""
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "a number of thousands of digits"
    return f"`{text if len(text) <= 60 else text[:57] + '...'}` ({type(value).__name__})"


def apply_overrides(data: Mapping[str, Any], overrides: list[str], option: str) -> dict[str, Any]:
    """``data`` with ``key.path=value`` overrides applied (values are YAML).

    Raises:
        InputError: an override without ``=``, a path that leads through a plain value, or a value
            that no file may have. What is not YAML at all is text.
    """
    result = _copy(data)
    for item in overrides:
        path, separator, text = item.partition("=")
        if not separator or not path.strip():
            raise InputError(option, f"got `{item}`", "key=value with a dotted key")
        try:
            value = parse_yaml(text)
        except InvalidValue as error:
            raise InputError(
                option, f"`{path}={text}`: not valid YAML{yaml_problem(error)}"
            ) from None
        except yaml.YAMLError:
            value = text
        node = result
        *parents, last = path.strip().split(".")
        if len(parents) > MOST_LEVELS:
            raise InputError(option, f"`{path}` has {len(parents)} dots", f"at most {MOST_LEVELS}")
        for key in parents:
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise InputError(option, f"`{path}`: `{key}` is not a group of keys")
            node = child
        node[last] = value
    return result


def _copy(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _copy(value) for key, value in data.items()}
    return list(data) if isinstance(data, list) else data


def _keys(model: type[pydantic.BaseModel]) -> str:
    return ", ".join(f"`{name}`" for name in _names(model))


def _names(model: type[pydantic.BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict) or get_args(annotation):
        return [found for part in get_args(annotation) for found in _models_in(part)]
    return []


def _models_at(root: type[pydantic.BaseModel], location: tuple[Any, ...]) -> list[Any]:
    """The models that hold the field at ``location``: its parents in the schema."""
    models: list[Any] = [root]
    for part in location:
        found = []
        for model in models:
            for name, field in model.model_fields.items():
                if part == (field.alias or name):
                    found += _models_in(field.annotation)
        models = found or models
    return models


def _first_error(
    model: type[pydantic.BaseModel], data: Any, failure: pydantic.ValidationError, source: str
) -> InputError:
    errors = [(_location(error, data), error) for error in failure.errors()]
    # An unknown key is usually the cause of a missing one: show it first.
    unknown = ("extra_forbidden", "invalid_key")
    first = next((e for e in errors if e[1]["type"] in unknown), errors[0])
    # Of the members of a union, the one that got furthest is the one that was meant.
    below = [e for e in errors if e[0][: len(first[0])] == first[0]]
    location, error = max(below, key=lambda e: len(e[0]))
    path = ".".join(str(part) for part in location)
    field = f"{source}: {path}" if path else source
    kind, got = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = [name for parent in _models_at(model, location[:-1]) for name in _names(parent)]
        allowed = ", ".join(f"`{name}`" for name in dict.fromkeys(known))
        return InputError(field, "unknown key", allowed, nearest(str(location[-1]), known))
    if kind == "invalid_key" or error["loc"][-1:] == ("[key]",):  # the path ends with the key
        place = ": ".join(filter(None, (source, ".".join(map(str, location[:-1])))))
        return InputError(
            place, f"has the key {describe(got)}", "text as keys", "Put quotes around it."
        )
    if kind == "missing":
        return InputError(field, "is missing", hint="Add it.")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # it knows what is allowed; the place is known here
        place = field if path else f"{source}: {cause.field}"
        return InputError(place, cause.problem, cause.allowed, cause.hint)
    if kind == "value_error":
        return InputError(field, _lower(error["msg"].removeprefix("Value error, ")))
    same = [e for place, e in errors if place == location]
    allowed = " or ".join(dict.fromkeys(_allowed(e) for e in same))
    return InputError(field, f"got {describe(got)}", allowed)


def _allowed(error: Any) -> str:
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "a mapping"
    if error["type"] == "too_short":
        return f"at least {error['ctx']['min_length']} entries"
    message = _lower(error["msg"].removeprefix("Value error, ").removeprefix("Input "))
    return message.removeprefix("should be ")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _location(error: Any, data: Any) -> tuple[Any, ...]:
    """The path of an error in the user's data.

    pydantic puts the name of the tried union member into the path, which users do not know: what
    is not in the data is left out, unless it is what is missing there.
    """
    parts = error["loc"]
    kept = []
    for index, part in enumerate(parts):
        if (isinstance(data, Mapping) and part in data) or (
            isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]
        elif not (error["type"] == "missing" and index == len(parts) - 1):
            continue
        kept.append(part)
    return tuple(kept)
