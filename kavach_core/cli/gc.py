"""``kavach gc``: remove what owners that have died left on this host."""

from __future__ import annotations

import argparse
import json
import os

from attrs import asdict

from kavach_core.errors import CreateError
from kavach_core.exit_status import EXIT_FAILED
from kavach_core.oci.garbage import Finding, collect

NEEDS_ROOT = "boxes belong to root"


def collect_garbage(options: argparse.Namespace, _: list[str]) -> int:
    """Print what was found, and whether it is gone. The status is 0 unless something could not be removed."""
    require_root()
    findings = collect(dry_run=options.dry_run)
    if options.json:
        print(json.dumps({"dry_run": options.dry_run, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(findings, dry_run=options.dry_run)
    return EXIT_FAILED if any(finding.left for finding in findings) else 0


def require_root() -> None:
    """Refuse who is not root.

    Raises:
        CreateError: for everybody else.
    """
    if os.geteuid() != 0:
        raise CreateError(NEEDS_ROOT, stage="workspace", hint="run as root")


def _print(findings: list[Finding], *, dry_run: bool) -> None:
    for finding in findings:
        verb = "would remove" if dry_run else "removed" if finding.removed else "cannot remove"
        print(f"{verb} {finding.path}{_details(finding)}")
        for path in finding.left:
            print(f"  still there: {path}")
    if not findings:
        print("nothing to remove")


def _details(finding: Finding) -> str:
    facts = [f"of process {finding.owner_pid}"] if finding.owner_pid else []
    facts += [f"box {box_id}" for box_id in finding.boxes]
    return f" ({', '.join(facts)})" if facts else ""
