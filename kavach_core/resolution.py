"""From a configuration to a spec: the root is found, defaults are filled in, the backend is asked if it can."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from kavach_core import capabilities
from kavach_core.abc import (
    Backend,
    HostToolchain,
    ImageProvider,
    MountedImage,
    RootDirectory,
    RootSource,
    SandboxSpec,
)
from kavach_core.config import SandboxConfig
from kavach_core.discovery import IMAGES, load_plugin
from kavach_core.errors import FieldProblem, UnsupportedPolicy
from kavach_core.policy import resolve_policy

IMAGE_PROVIDER: Final = "images"
_UNMOUNT_SECONDS: Final = 10.0

_ALWAYS_REQUIRED: Final = frozenset(
    {
        capabilities.EXEC,
        capabilities.NET_NONE,
        capabilities.FS_READONLY_ROOT,
        capabilities.NO_NEW_PRIVS,
        capabilities.NO_CAPABILITIES,
    }
)


@asynccontextmanager
async def mounted_root(config: SandboxConfig) -> AsyncIterator[tuple[SandboxConfig, RootSource]]:
    """Give the root that a configuration asks for, and the configuration with what its image adds.

    Raises:
        UnknownPlugin: when an image is asked for and no image provider is installed; the hint names one.
        KavachError: when the image cannot be had or trusted.
    """
    if config.image is None:
        yield config, HostToolchain() if config.rootfs is None else RootDirectory(path=config.rootfs)
        return
    provider: ImageProvider = load_plugin(IMAGES, IMAGE_PROVIDER)()
    image = await provider.mount(config.image)
    try:
        yield _under(config, image), image.root
    finally:
        with trio.move_on_after(_UNMOUNT_SECONDS, shield=True):
            await provider.unmount(image)


def _under(config: SandboxConfig, image: MountedImage) -> SandboxConfig:
    """Put what the image declares under what the caller says."""
    return attrs.evolve(
        config,
        env={**image.env, **config.env},
        cwd=config.cwd if config.cwd is not None else image.cwd,
        user=config.user if config.user is not None else image.user,
    )


def resolve_spec(config: SandboxConfig, root: RootSource) -> SandboxSpec:
    """Fill in the defaults: what a backend is asked to boot.

    Raises:
        ConfigError: when the policy is no preset's name.
    """
    policy = resolve_policy(config.policy)
    policy = attrs.evolve(policy, limits=config.limits.over(policy.limits))
    default_cwd = "/work" if isinstance(root, HostToolchain) else "/"
    return SandboxSpec(
        sandbox_id=secrets.token_hex(8),
        root=root,
        policy=policy,
        cwd=config.cwd if config.cwd is not None else default_cwd,
        labels=dict(config.labels),
    )


def require_capabilities(backend: Backend, spec: SandboxSpec) -> None:
    """Check that the backend can do what the spec needs; what this host lacks is found by the backend itself.

    Raises:
        UnsupportedPolicy: with everything that it cannot do.
    """
    root = capabilities.FS_HOST_TOOLCHAIN if isinstance(spec.root, HostToolchain) else capabilities.FS_ROOTFS
    limits = spec.policy.limits
    by_field = {
        capabilities.LIMITS_MEMORY: limits.memory,
        capabilities.LIMITS_CPU: limits.cpus,
        capabilities.LIMITS_PIDS: limits.pids,
        capabilities.LIMITS_OPEN_FILES: limits.open_files,
        capabilities.FS_TMP_SIZE: limits.tmp,
    }
    needed = {
        *_ALWAYS_REQUIRED,
        root,
        *(name for name, value in by_field.items() if value is not None),
    }
    problems = [
        FieldProblem(
            name,
            f"backend {backend.name!r} cannot {capabilities.DESCRIPTIONS[name]}",
            "choose another backend or policy",
        )
        for name in sorted(needed - backend.capabilities)
    ]
    if problems:
        raise UnsupportedPolicy(problems)
