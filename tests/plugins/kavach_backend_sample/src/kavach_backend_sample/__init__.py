"""A backend as a third party writes it: boxes of the host's runc, under the name ``sample``."""

from __future__ import annotations

from typing import Final

from kavach_guest.oci_boot import CAPABILITIES, boot, find_program
from kavach_guest.oci_probe import read_version, start_one

from kavach_core.abc import SandboxSpec, Session
from kavach_core.errors import CreateError
from kavach_core.oci.runtime import OciRuntime
from kavach_core.types import ProbeReport, Reason

_HINT: Final = "apt-get install runc"


class SampleBackend:
    """Boots boxes with runc."""

    name = "sample"
    api_version = (1, 0)
    capabilities = CAPABILITIES
    base_score = 50

    async def probe(self) -> ProbeReport:
        """Find out whether a box starts here, by starting one."""
        runtime = _runtime()
        if runtime is None:
            return ProbeReport(usable=False, reasons=(Reason(text="runc is not installed", remedy=_HINT),))
        reason = await start_one(runtime, tasks_per_process=1)
        return ProbeReport(
            usable=reason is None,
            version=await read_version(str(runtime.program)),
            path=str(runtime.program),
            reasons=() if reason is None else (reason,),
            capabilities=self.capabilities,
        )

    async def open(self, spec: SandboxSpec) -> Session:
        """Boot a box."""
        runtime = _runtime()
        if runtime is None:
            raise CreateError("runc is not installed", sandbox_id=spec.sandbox_id, backend=self.name, hint=_HINT)
        return await boot(runtime, spec)


def _runtime() -> OciRuntime | None:
    program = find_program("runc")
    return None if program is None else OciRuntime(name="sample", program=program)
