"""The backends ``runc``, ``crun`` and ``oci``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar, Final

from kavach_guest.oci_boot import CAPABILITIES, boot, find_program, host_capabilities, quick_plan
from kavach_guest.oci_probe import read_version, start_one

from kavach_core.abc import QuickPlan, SandboxSpec, Session
from kavach_core.errors import CreateError
from kavach_core.oci.runtime import OciRuntime
from kavach_core.types import ProbeReport, Reason

_BASE_SCORE: Final = 55


class _RuntimeBackend:
    """A backend that drives one runtime of the host."""

    name: ClassVar[str]
    api_version: ClassVar[tuple[int, int]] = (1, 0)
    capabilities: ClassVar[frozenset[str]] = CAPABILITIES
    base_score: ClassVar[int] = _BASE_SCORE

    async def probe(self) -> ProbeReport:
        """Start a box with the runtime."""
        program = _program(self.name)
        if program is None:
            remedy = f"apt-get install {self.name}"
            return ProbeReport(usable=False, reasons=(Reason(text=f"{self.name} is not installed", remedy=remedy),))
        reason = await start_one(_runtime(self.name, program), tasks_per_process=1)
        return ProbeReport(
            usable=reason is None,
            version=await read_version(str(program)),
            path=str(program),
            reasons=() if reason is None else (reason,),
            capabilities=host_capabilities(),
        )

    async def open(self, spec: SandboxSpec) -> Session:
        """Boot a box. See ``kavach_core.abc.Backend.open``."""
        program = _program(self.name)
        if program is None:
            raise CreateError(
                f"{self.name} is not installed",
                sandbox_id=spec.sandbox_id,
                backend=self.name,
                stage="boot",
                hint=f"apt-get install {self.name}",
            )
        return await boot(_runtime(self.name, program), spec)

    def plan(self, spec: SandboxSpec) -> QuickPlan | None:
        """Return how boxes for ``spec`` are started. See ``kavach_core.abc.Planner``."""
        program = _program(self.name)
        return None if program is None else quick_plan(_runtime(self.name, program), spec)


class RuncBackend(_RuntimeBackend):
    """Boxes of runc."""

    name = "runc"


class CrunBackend(_RuntimeBackend):
    """Boxes of crun."""

    name = "crun"


class OciBackend:
    """Boxes of crun where it works, which starts them in half the time, else of runc."""

    name: ClassVar[str] = "oci"
    api_version: ClassVar[tuple[int, int]] = (1, 0)
    capabilities: ClassVar[frozenset[str]] = CAPABILITIES
    base_score: ClassVar[int] = _BASE_SCORE

    async def probe(self) -> ProbeReport:
        """Report on the runtime that would be used."""
        crun = await CrunBackend().probe()
        return crun if crun.usable else await RuncBackend().probe()

    async def open(self, spec: SandboxSpec) -> Session:
        """Boot a box with the better runtime. See ``kavach_core.abc.Backend.open``."""
        if _program("crun") is None:
            return await RuncBackend().open(spec)
        try:
            return await CrunBackend().open(spec)
        except CreateError:
            if _program("runc") is None:
                raise
            return await RuncBackend().open(spec)


@functools.cache
def _program(name: str) -> Path | None:
    return find_program(name)


def _runtime(name: str, program: Path) -> OciRuntime:
    return OciRuntime(name=name, program=program)
