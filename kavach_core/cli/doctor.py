"""``kavach doctor``: what this host offers, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import trio

from kavach_core.cli.backends import examine
from kavach_core.oci.cgroups import CgroupLayout, detect_layout

_SHADES = {True: "ok", False: "!!"}


def show_doctor(options: argparse.Namespace, _: list[str]) -> int:
    """Print what was found. The status is 0 when at least one backend works."""
    findings = [*_host_findings(), *trio.run(_backend_findings)]
    usable = any(finding["ok"] for finding in findings if finding["what"].startswith("backend "))
    if options.json:
        print(json.dumps({"usable": usable, "findings": findings}, indent=2))
    else:
        _print(findings)
    return 0 if usable else 1


def _finding(what: str, *, ok: bool, found: str, remedy: str | None = None) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, "remedy": remedy}


def _host_findings() -> list[dict[str, Any]]:
    layout = detect_layout()
    root = os.geteuid() == 0
    return [
        _finding("python", ok=True, found=f"{sys.version.split()[0]} on Linux {platform.release()}"),
        _finding(
            "privileges",
            ok=root,
            found="root" if root else "not root",
            remedy=None if root else "run as root",
        ),
        _user_namespaces(),
        _cgroups(layout),
    ]


def _user_namespaces() -> dict[str, Any]:
    limit = Path("/proc/sys/user/max_user_namespaces")
    available = limit.exists() and int(limit.read_text()) > 0
    found = f"up to {limit.read_text().strip()}" if available else "none can be made"
    remedy = None if available else "sysctl -w user.max_user_namespaces=10000"
    return _finding("user namespaces", ok=available, found=found, remedy=remedy)


def _cgroups(layout: CgroupLayout) -> dict[str, Any]:
    missing = [name for name in ("memory", "cpu", "pids") if not layout.has(name)]
    hybrid = layout.version == 1 and layout.unified is not None
    found = f"version {layout.version}{' (hybrid)' if hybrid else ''}"
    if missing:
        found += f", without {', '.join(missing)}"
    remedy = f"enable the cgroup controllers {', '.join(missing)}" if missing else None
    return _finding("cgroups", ok=not missing, found=found, remedy=remedy)


async def _backend_findings() -> list[dict[str, Any]]:
    findings = []
    for status, candidate in await examine():
        what = f"backend {status.plugin.name}"
        if candidate is None:
            hint = status.error.hint if status.error else None
            findings.append(_finding(what, ok=False, found=str(status.error), remedy=hint))
            continue
        report = candidate.report
        facts = [
            report.version or "",
            report.path or "",
            *(f"{k} {v}" for k, v in report.details.items()),
        ]
        reasons = [reason.text for reason in report.reasons]
        remedy = next((reason.remedy for reason in report.reasons if reason.remedy), None)
        found = ", ".join([*filter(None, facts), *reasons])
        findings.append(_finding(what, ok=report.usable, found=found, remedy=remedy))
    return findings


def _print(findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        print(f"[{_SHADES[finding['ok']]}] {finding['what']:<18} {finding['found']}")
        if finding["remedy"] and not finding["ok"]:
            print(f"     {'':<18} -> {finding['remedy']}")
