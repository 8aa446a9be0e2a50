"""Choosing a backend: the one that was named, or the strongest that can start a box on this host."""

from __future__ import annotations

import functools
from typing import Any, cast

from attrs import frozen

from kavach_core.abc import Backend
from kavach_core.discovery import BACKENDS, PluginStatus, load_all, load_plugin
from kavach_core.errors import NoBackendAvailable
from kavach_core.types import ProbeReport, Reason

AUTO = "auto"


@frozen(kw_only=True)
class Candidate:
    """A backend and what it found out about itself; no backend when it failed to."""

    backend: Backend | None
    report: ProbeReport


async def choose_backend(name: str) -> Backend:
    """Return the backend called ``name``; ``auto`` probes the installed ones, the strongest first.

    Raises:
        DiscoveryError: when the named backend is not installed or cannot be used.
        NoBackendAvailable: for ``auto``, when none can start a box here.
    """
    if name != AUTO:
        return cast("Backend", _load(name)())
    refused = []
    for status in by_strength(load_all(BACKENDS)):
        candidate = await probe(status)
        if candidate is not None and candidate.backend is not None and candidate.report.usable:
            return candidate.backend
        refused.append(_why_not(status, candidate))
    hint = "kavach doctor says how to mend it" if refused else "pip install kavach-gvisor or kavach-oci"
    text = f"no backend can start a box here: {'; '.join(refused) or 'none is installed'}"
    raise NoBackendAvailable(text, name=AUTO, hint=hint)


@functools.cache
def _load(name: str) -> type[Any]:
    """Load a backend once in a process: reading what is installed takes longer than booting a box."""
    return load_plugin(BACKENDS, name)


def by_strength(statuses: list[PluginStatus]) -> list[PluginStatus]:
    """Order backends from the strongest boundary to the weakest; those that cannot be used come last."""

    def key(status: PluginStatus) -> tuple[int, str]:
        return (-status.cls.base_score if status.cls else 1, status.plugin.name)

    return sorted(statuses, key=key)


async def probe(status: PluginStatus) -> Candidate | None:
    """Let a backend look at this host; None when its plugin cannot be used."""
    if status.cls is None:
        return None
    try:
        backend = cast("Backend", status.cls())
        report = _checked(await backend.probe())
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's own code, and one of them must not hide the others
        reason = Reason(text=f"its probe failed: {type(error).__name__}: {error}", remedy="tell who wrote the plugin")
        return Candidate(backend=None, report=ProbeReport(usable=False, reasons=(reason,)))
    return Candidate(backend=backend, report=report)


def _checked(report: object) -> ProbeReport:
    if isinstance(report, ProbeReport):
        return report
    raise TypeError(f"probe gave {type(report).__name__}, not a ProbeReport")


def _why_not(status: PluginStatus, candidate: Candidate | None) -> str:
    if candidate is None:
        return f"{status.plugin.name}: {status.error}"
    reasons = ", ".join(reason.text for reason in candidate.report.reasons)
    return f"{status.plugin.name}: {reasons or 'not usable'}"
