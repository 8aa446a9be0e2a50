"""``kavach backends``: what is installed, and whether it works here."""

from __future__ import annotations

import argparse
import json
from typing import Any

import trio

from kavach_core.discovery import BACKENDS, PluginStatus, load_all
from kavach_core.selection import Candidate, by_strength, probe


def show_backends(options: argparse.Namespace, _: list[str]) -> int:
    """Print a row for each backend. The status is 0 when at least one works."""
    rows = [_row(status, candidate) for status, candidate in trio.run(examine)]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0 if any(row["usable"] for row in rows) else 1


async def examine() -> list[tuple[PluginStatus, Candidate | None]]:
    """Probe every installed backend, the strongest first."""
    return [(status, await probe(status)) for status in by_strength(load_all(BACKENDS))]


def _row(status: PluginStatus, candidate: Candidate | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": status.plugin.name,
        "usable": False,
        "base_score": status.cls.base_score if status.cls else None,
        "distribution": status.plugin.distribution,
        "distribution_version": status.plugin.version,
        "reasons": [{"text": str(status.error), "remedy": status.error.hint}] if status.error else [],
    }
    if candidate is not None:
        report = candidate.report
        row |= {
            "usable": report.usable,
            "version": report.version,
            "path": report.path,
            "reasons": [{"text": reason.text, "remedy": reason.remedy} for reason in report.reasons],
            "capabilities": sorted(report.capabilities),
            "details": report.details,
        }
    return row


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'BACKEND':<10} {'USABLE':<7} {'BASE':<5} {'VERSION':<18} FROM")
    for row in rows:
        origin = f"{row['distribution']} {row['distribution_version']}"
        base = row["base_score"] if row["base_score"] is not None else "-"
        usable = "yes" if row["usable"] else "no"
        print(f"{row['name']:<10} {usable:<7} {base:<5} {row.get('version') or '-':<18} {origin}")
        for reason in row["reasons"]:
            print(f"{'':<10} {reason['text']}")
    if not rows:
        print("none is installed: pip install kavach-gvisor kavach-oci")
