"""The image provider gives a sandbox its root, what the image declares goes under what the caller says."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kavach_core import resolution
from kavach_core.abc import MountedImage, RootDirectory
from kavach_core.config import SandboxConfig
from kavach_core.errors import ConfigError, KavachError, UnknownPlugin
from kavach_core.resolution import mounted_root
from kavach_core.types import User


class Provider:
    """An image provider with one image, which is a directory."""

    name = "images"
    api_version = (1, 0)
    mounted: list[str]

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounted = []

    async def mount(self, reference: str) -> MountedImage:
        if reference != "good":
            raise KavachError(f"no image {reference!r}")
        self.mounted.append(reference)
        user = User(uid=7, gid=7)
        env = {"A": "image", "B": "image"}
        return MountedImage(root=RootDirectory(path=self.root), env=env, cwd="/app", user=user, digest="sha256:0")

    async def unmount(self, _: MountedImage) -> None:
        await trio.lowlevel.checkpoint()
        self.mounted.pop()


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Provider:
    one = Provider(tmp_path)
    monkeypatch.setattr(resolution, "load_plugin", lambda *_: lambda: one)
    return one


async def test_the_caller_stands_over_the_image(provider: Provider) -> None:
    async with mounted_root(SandboxConfig(image="good", env={"B": "caller"})) as (config, root):
        assert root == RootDirectory(path=provider.root)
        assert (config.env, config.cwd, config.user) == ({"A": "image", "B": "caller"}, "/app", User(uid=7, gid=7))
    async with mounted_root(SandboxConfig(image="good", cwd="/tmp", user="root")) as (config, _):
        assert (config.cwd, config.user) == ("/tmp", User(uid=0, gid=0))


async def test_the_image_is_given_back_whatever_happens(provider: Provider) -> None:
    with pytest.raises(ZeroDivisionError):
        async with mounted_root(SandboxConfig(image="good")):
            assert provider.mounted == ["good"]
            raise ZeroDivisionError
    assert not provider.mounted
    with trio.CancelScope() as scope:
        async with mounted_root(SandboxConfig(image="good")):
            scope.cancel()
            await trio.sleep_forever()
    assert not provider.mounted


@pytest.mark.usefixtures("provider")
async def test_an_image_that_is_not_there() -> None:
    with pytest.raises(KavachError, match="no image 'bad'"):
        async with mounted_root(SandboxConfig(image="bad")):
            pass


async def test_without_a_provider_the_hint_names_one() -> None:
    with pytest.raises(UnknownPlugin, match="pip install kavach-images"):
        async with mounted_root(SandboxConfig(image="good")):
            pass


def test_one_root_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image: is given beside rootfs"):
        SandboxConfig(image="x", rootfs=tmp_path)


def test_one_root_is_told_with_the_rest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SandboxConfig(image="x", rootfs=tmp_path, timeout=-1)
    assert [problem.field for problem in caught.value.problems] == ["timeout", "image"]
