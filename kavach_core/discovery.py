"""Finding plugins: list them without importing anything, load just the one that was asked for, survive a broken one.

stevedore does the loading, made safe in four ways: the entry points come from the installed distributions
themselves, not from stevedore's cache on disk (which anybody who can write it could point at any importable
name); two distributions that claim one name are refused before either is imported; only the named plugin is
imported; and what a plugin does while it is imported, ``sys.exit`` included, becomes a typed error.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from kavach_core.abc import API_VERSION, Backend, ImageProvider
from kavach_core.errors import (
    DiscoveryError,
    DuplicatePlugin,
    IncompatiblePlugin,
    PluginLoadError,
    UnknownPlugin,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BACKENDS: Final = "kavach_core.backends"
IMAGES: Final = "kavach_core.images"

_PROTOCOLS: Final[dict[str, type[Any]]] = {BACKENDS: Backend, IMAGES: ImageProvider}

_KNOWN_DISTRIBUTIONS: Final = {
    (BACKENDS, "gvisor"): "kavach-gvisor",
    (BACKENDS, "runc"): "kavach-oci",
    (BACKENDS, "crun"): "kavach-oci",
    (BACKENDS, "oci"): "kavach-oci",
    (BACKENDS, "process"): "kavach-process",
    (IMAGES, "images"): "kavach-images",
}


@frozen(kw_only=True)
class Plugin:
    """An entry point, not imported.

    Attributes:
        group: its entry-point group.
        name: the name callers use.
        target: the object it names, as ``module:attribute``.
        distribution: the distribution that declares it.
        version: version of that distribution.
    """

    group: str
    name: str
    target: str
    distribution: str
    version: str


@frozen(kw_only=True)
class PluginStatus:
    """What came of loading one plugin.

    Attributes:
        plugin: the entry point.
        cls: its class, or None when it cannot be used.
        error: why not, or None.
    """

    plugin: Plugin
    cls: type[Any] | None = None
    error: DiscoveryError | None = None


def list_plugins(group: str) -> list[Plugin]:
    """Return the plugins of a group, by name, without importing any of them. Duplicates are in the list."""
    found = [_describe(group, point) for point in _entry_points(group)]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def load_plugin(group: str, name: str) -> type[Any]:
    """Import one plugin and check that it fits the contract.

    Raises:
        UnknownPlugin: when no installed distribution has it; the hint names the one that would.
        DuplicatePlugin: when two have it.
        PluginLoadError: when it cannot be imported.
        IncompatiblePlugin: when it is made for another version of the contract, or is incomplete.
    """
    candidates = [plugin for plugin in list_plugins(group) if plugin.name == name]
    if not candidates:
        raise _unknown(group, name)
    if len(candidates) > 1:
        raise _duplicate(name, candidates)
    return _load(candidates[0])


def load_all(group: str) -> list[PluginStatus]:
    """Load every plugin of a group; one that cannot be used becomes a row with the reason."""
    by_name: dict[str, list[Plugin]] = defaultdict(list)
    for plugin in list_plugins(group):
        by_name[plugin.name].append(plugin)
    return [_status(name, plugins) for name, plugins in by_name.items()]


def _status(name: str, plugins: list[Plugin]) -> PluginStatus:
    if len(plugins) > 1:
        return PluginStatus(plugin=plugins[0], error=_duplicate(name, plugins))
    try:
        return PluginStatus(plugin=plugins[0], cls=_load(plugins[0]))
    except DiscoveryError as error:
        return PluginStatus(plugin=plugins[0], error=error)


def _entry_points(group: str) -> list[EntryPoint]:
    """Read the entry points of a group from each installed distribution.

    Of two copies of one distribution, the first on the path counts. A distribution whose metadata cannot be parsed
    offers nothing, and does not keep the others from it.
    """
    import importlib.metadata  # noqa: PLC0415 - brings the email package with it, and is not needed to use kavach's types

    found: dict[str, list[EntryPoint]] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"])).lower()
        if name not in found:
            with contextlib.suppress(TypeError, ValueError):  # what importlib.metadata raises for lines it cannot take
                found[name] = list(distribution.entry_points.select(group=group))
    return [point for points in found.values() for point in points]


def _describe(group: str, point: EntryPoint) -> Plugin:
    return Plugin(
        group=group,
        name=point.name,
        target=point.value,
        distribution=point.dist.name if point.dist else "unknown",
        version=point.dist.version if point.dist else "unknown",
    )


def _load(plugin: Plugin) -> type[Any]:
    cls = _import(plugin)
    try:
        problem = _contract_problem(cls, plugin.group)
    except Exception as error:  # noqa: BLE001 - looking at a class can run its metaclass, which can raise anything
        problem = f"cannot be examined: {_one_line(error)}", f"reinstall or remove {plugin.distribution}"
    if problem:
        text, hint = problem
        raise IncompatiblePlugin(
            f"plugin {plugin.name!r} of {plugin.distribution} {plugin.version} {text}",
            name=plugin.name,
            hint=hint,
        )
    return cls


def _import(plugin: Plugin) -> type[Any]:
    # Here and not above: listing plugins must not cost the import of stevedore.
    from stevedore import DriverManager, ExtensionManager  # noqa: PLC0415

    ExtensionManager.ENTRY_POINT_CACHE[plugin.group] = _entry_points(plugin.group)
    try:
        manager: Any = DriverManager(plugin.group, plugin.name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit in a plugin must not end the host
        raise PluginLoadError(
            f"plugin {plugin.name!r} of {plugin.distribution} {plugin.version} cannot be imported: {_one_line(error)}",
            name=plugin.name,
            hint=f"reinstall or remove {plugin.distribution}",
        ) from error
    finally:
        del ExtensionManager.ENTRY_POINT_CACHE[plugin.group]
    loaded: type[Any] = manager.driver
    return loaded


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _contract_problem(cls: object, group: str) -> tuple[str, str] | None:
    """Return what keeps ``cls`` from being used as a plugin of ``group``, and the remedy."""
    if not inspect.isclass(cls):
        return "does not name a class", "point the entry point at the class itself"
    declared = getattr(cls, "api_version", None)
    version = _as_version(declared)
    if version is None:
        return (
            f"declares no usable api_version ({declared!r})",
            "set api_version = (1, 0) on the class",
        )
    if version[0] != API_VERSION[0] or version[1] > API_VERSION[1]:
        return (
            f"is made for version {version[0]}.{version[1]} of the contract, this is {API_VERSION[0]}.{API_VERSION[1]}",
            "upgrade kavach-core" if version > API_VERSION else "upgrade the plugin",
        )
    missing = [member for member in _members(_PROTOCOLS[group]) if not hasattr(cls, member)]
    if missing:
        return f"lacks {', '.join(missing)}", "see the reference of kavach_core.abc"
    score = getattr(cls, "base_score", None)
    if group == BACKENDS and type(score) is not int:
        return f"has {score!r} for base_score", "set it to a whole number, 0 to 100"
    return None


def _as_version(value: object) -> tuple[int, int] | None:
    match value:
        case (int(major), int(minor)):
            return major, minor
        case _:
            return None


def _members(protocol: type[Any]) -> list[str]:
    public = {*protocol.__annotations__, *vars(protocol)}
    return sorted(name for name in public if not name.startswith("_"))


def _unknown(group: str, name: str) -> UnknownPlugin:
    kind = group.rpartition(".")[2].removesuffix("s")
    distribution = _KNOWN_DISTRIBUTIONS.get((group, name))
    installed = ", ".join(dict.fromkeys(plugin.name for plugin in list_plugins(group))) or "none"
    hint = f"pip install {distribution}" if distribution else f"installed: {installed}"
    return UnknownPlugin(f"no {kind} {name!r} is installed", name=name, hint=hint)


def _duplicate(name: str, plugins: list[Plugin]) -> DuplicatePlugin:
    owners = ", ".join(f"{plugin.distribution} {plugin.version}" for plugin in plugins)
    return DuplicatePlugin(
        f"more than one distribution provides {name!r}: {owners}",
        name=name,
        hint="uninstall all but one",
    )
