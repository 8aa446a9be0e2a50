"""The one converter between plain data (dict, JSON, TOML) and kavach's classes.

Strict: an unknown key, a value of another type and a value out of range are all refused, and all of them are
    reported at once, each with its path. Nothing is coerced but sizes (``512M``), paths and users, which have
    a textual form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import attrs
import cattrs

from kavach_core.config import SandboxConfig, parse_user
from kavach_core.errors import ConfigError, FieldProblem
from kavach_core.policy import ByteSize, SandboxPolicy
from kavach_core.types import User
from kavach_core.validation import problems_of, show

T = TypeVar("T")

MAX_FILE_BYTES = 1024 * 1024
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:iB|B)?", re.ASCII)
_SIZE_STEPS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> ByteSize:
    """Parse a number of bytes with an optional binary suffix: ``4096``, ``512K``, ``512M``, ``2G``, ``1T``.

    Raises:
        ValueError: when it is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512M")
    return ByteSize(int(match[1]) * 1024 ** _SIZE_STEPS[match[2]])


def structure(data: object, cls: type[T]) -> T:
    """Turn plain data into an instance of ``cls``.

    Raises:
        ConfigError: with every key that is unknown and every value that is wrong.
    """
    return _converter.structure(data, cls)


def unstructure(instance: object) -> Any:  # noqa: ANN401 - plain data has no better type
    """Turn an instance into plain data that ``json`` can write."""
    return _converter.unstructure(instance)


def load_config(path: Path) -> SandboxConfig:
    """Read a sandbox's configuration from a ``.toml`` or ``.json`` file of at most 1 MiB.

    Raises:
        ConfigError: when the file cannot be read or parsed, or with every field that was refused.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        data = _parse(raw, path.suffix)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            [FieldProblem(str(path), str(error), "write it as TOML, or as JSON in a .json file")]
        ) from error
    return structure(data, SandboxConfig)


def _parse(raw: bytes, suffix: str) -> object:
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    import json  # noqa: PLC0415 - parsers are imported when there is something to parse
    import tomllib  # noqa: PLC0415 - as above

    return json.loads(raw) if suffix == ".json" else tomllib.loads(raw.decode())


def _structure_class(data: object, cls: type[T]) -> T:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError([FieldProblem("", f"{type(data).__name__} is not a table of fields")])
    attributes = {attribute.name: attribute for attribute in attrs.fields(cls)}  # type: ignore[arg-type]  # cls is an attrs class: the hook is registered for those
    problems = [_unknown_key(str(key), list(attributes)) for key in data if key not in attributes]
    hints = get_type_hints(cls)
    values: dict[str, object] = {}
    for name, attribute in attributes.items():
        if name in data:
            values[name] = _structure_field(data[name], hints[name], attribute, problems)
        elif attribute.default is attrs.NOTHING:
            problems.append(FieldProblem(name, "is missing"))
    if problems:
        raise ConfigError(problems)
    return cls(**values)


def _structure_field(
    value: object,
    hint: Any,  # noqa: ANN401 - a type expression
    attribute: attrs.Attribute[Any],
    problems: list[FieldProblem],
) -> object:
    """Structure one field; on failure add to ``problems`` and return None."""
    try:
        structured: object = _converter.structure(value, hint)
    except ConfigError as error:
        problems.extend(problem.under(attribute.name) for problem in error.problems)
        return None
    except (ValueError, TypeError) as error:
        problems.append(FieldProblem(attribute.name, str(error)))
        return None
    problems.extend(problems_of(attribute, structured))
    return structured


def _unknown_key(key: str, known: list[str]) -> FieldProblem:
    import difflib  # noqa: PLC0415 - only to explain a mistake

    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return FieldProblem(key, "unknown key", hint)


def _exactly(expected: type[T], *, name: str) -> Callable[[object, Any], T]:
    def hook(value: object, _: object) -> T:
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise TypeError(f"{show(value)} is not {name}")
        return value

    return hook


def _structure_float(value: object, _: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{show(value)} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("is too large") from None


def _structure_size(value: object, _: object) -> ByteSize:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{show(value)} is not a size")
    return ByteSize(value)


def _structure_mapping(value: object, _: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{type(value).__name__} is not a table of strings")
    return dict(value)  # what is in it, the field's own check judges: it names each bad key


def _structure_path(value: object, _: object) -> Path:
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{show(value)} is not a path")
    return Path(value)


def _structure_user(value: object, _: object) -> User:
    if isinstance(value, User):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return User(uid=value, gid=value)
    if isinstance(value, str):
        return parse_user(value)
    return _structure_class(value, User)


def _structure_policy(value: object, _: object) -> str | SandboxPolicy:
    return value if isinstance(value, str) else _structure_class(value, SandboxPolicy)


def _build() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    converter.register_structure_hook_func(attrs.has, _structure_class)
    converter.register_structure_hook(str, _exactly(str, name="a string"))
    converter.register_structure_hook(int, _exactly(int, name="a whole number"))
    converter.register_structure_hook(bool, _exactly(bool, name="true or false"))
    converter.register_structure_hook(float, _structure_float)
    converter.register_structure_hook(ByteSize, _structure_size)
    converter.register_structure_hook(Path, _structure_path)
    converter.register_structure_hook(User, _structure_user)
    converter.register_structure_hook_func(lambda t: t == Mapping[str, str], _structure_mapping)
    converter.register_structure_hook_func(lambda t: t == str | SandboxPolicy, _structure_policy)
    converter.register_unstructure_hook(Path, str)
    converter.register_unstructure_hook(bytes, lambda value: value.decode(errors="replace"))
    return converter


_converter = _build()
