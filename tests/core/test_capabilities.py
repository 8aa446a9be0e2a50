"""Capabilities: every constant is described, and nothing else is."""

from __future__ import annotations

import re

from kavach_core import capabilities
from kavach_core.discovery import BACKENDS, list_plugins, load_plugin


def constants() -> dict[str, str]:
    """The names of the module that stand for a capability."""
    return {name: value for name, value in vars(capabilities).items() if name.isupper() and isinstance(value, str)}


def test_every_constant_is_described() -> None:
    assert set(constants().values()) == set(capabilities.DESCRIPTIONS) == capabilities.ALL


def test_no_two_constants_mean_the_same() -> None:
    assert len(set(constants().values())) == len(constants())


def test_a_constant_is_named_like_its_value() -> None:
    for name, value in constants().items():
        assert name == value.replace(".", "_").upper()


def test_descriptions_complete_a_sentence() -> None:
    """They stand after "backend X cannot ..."."""
    for text in capabilities.DESCRIPTIONS.values():
        assert re.fullmatch(r"[a-z][^.\n]*[^.\s]", text)
    assert len(set(capabilities.DESCRIPTIONS.values())) == len(capabilities.DESCRIPTIONS)


def test_backends_declare_known_capabilities() -> None:
    plugins = [plugin.name for plugin in list_plugins(BACKENDS)]
    assert plugins
    for name in plugins:
        assert load_plugin(BACKENDS, name).capabilities <= capabilities.ALL
