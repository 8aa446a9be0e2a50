"""What kavach costs beside the raw runtimes: boxes, commands, the command line, imports, pools, bytes.

    .venv/bin/python benchmarks/exec.py [--rounds N] [--json FILE] [--only PART[,PART...]]

Parts: warm, exec, cold, cli, import, inside, live, pool, close, bytes, idle. Needs root and the runtimes; one that is
missing is left out and said so. Compare the ratios: the milliseconds are this machine's, now.
"""

from __future__ import annotations

import argparse
import functools
import json
import time

import engine
import startup
import trio
from bars import BACKENDS, verdicts
from measure import Measurements
from raw import raw_boxes

PARTS = ("warm", "exec", "cold", "cli", "import", "inside", "live", "pool", "close", "bytes", "idle")


def print_table(into: Measurements) -> None:
    """Print all medians, and every figure beside its bar."""
    print(f"\n{'case':<40} {'median':>10} {'p90':>10}  (ms unless said)")
    for name in into.samples:
        row = into.row(name)
        print(f"{name:<40} {row['median']:>10.2f} {row['p90']:>10.2f}")
    print(f"\n{'bar':<60} {'is':>8}")
    for row in verdicts(into):
        verdict = "" if row["holds"] else "<-- missed"
        print(f"{row['what']:<60} {row['is']:>8.2f} {row['kind']:>9} {row['bar']:>7.2f} {verdict}")


async def main(options: argparse.Namespace) -> None:
    """Measure what was asked for."""
    into = Measurements()
    started = time.time()
    parts = options.only.split(",")
    with raw_boxes(BACKENDS) as boxes:
        names = [box.backend for box in boxes]
        steps = {
            "warm": functools.partial(startup.measure_warm, boxes),
            "exec": functools.partial(startup.measure_exec, boxes),
            "cold": functools.partial(startup.measure_cold, boxes),
            "cli": functools.partial(startup.measure_command_line, boxes),
            "import": startup.measure_imports,
            "inside": functools.partial(engine.measure_inside, names),
            "live": functools.partial(engine.measure_live, boxes),
            "pool": functools.partial(engine.measure_pool, names),
            "close": functools.partial(engine.measure_close, names),
            "bytes": engine.measure_bytes,
            "idle": functools.partial(engine.measure_idle, names),
        }
        for name, step in steps.items():
            if name in parts:
                await step(into, options.rounds)
    print_table(into)
    if options.json:
        result = {"started": started, "cases": [into.row(name) for name in into.samples], "bars": verdicts(into)}
        await trio.Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", default=",".join(PARTS))
    trio.run(main, parser.parse_args())
