"""What has to hold: ratios of two cases measured side by side, differences, and a few absolute figures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from attrs import frozen
from measure import Measurements


@frozen
class Bar:
    """What has to hold of the medians of some cases.

    Attributes:
        what: it, in words.
        limit: the most that it may be; with ``at_least`` the least.
        cases: their names.
        combine: makes one number of their medians: by default the ratio of two.
        at_least: they are rates, of which more is better.
    """

    what: str
    limit: float
    cases: tuple[str, ...]
    combine: Callable[..., float] = operator.truediv
    at_least: bool = False

    def value(self, into: Measurements) -> float:
        """Return how it is."""
        return self.combine(*map(into.median, self.cases))


def ratio(what: str, case: str, over: str, limit: float) -> Bar:
    """One case may take at most so many times as long as another."""
    return Bar(what, limit, (case, over))


def figure(what: str, case: str, limit: float, *, at_least: bool = False) -> Bar:
    """The median of one case has to be at most, or at least, so much."""
    return Bar(what, limit, (case,), operator.pos, at_least)


BACKENDS = ("runc", "crun", "gvisor")
_PER_SECOND = {"runc": 10.0, "crun": 4.0, "gvisor": 1.7}
_CLOSE_MS = {"runc": 15.0, "crun": 15.0, "gvisor": 40.0}

BARS: tuple[Bar, ...] = (
    *(
        ratio(f"warm exec over fork+exec, {name}", f"{name}: kavach warm", f"{name}: fork+exec", 1.6)
        for name in ("runc", "crun")
    ),
    ratio("warm exec over runc exec", "runc: kavach exec", "runc: raw exec", 0.1),
    ratio("warm exec over crun exec", "crun: kavach exec", "crun: raw exec", 0.25),
    ratio("warm exec over runsc exec", "gvisor: kavach exec", "gvisor: raw exec", 0.65),
    *(
        ratio(f"cold box over its own run, {name}", f"{name}: kavach cold", f"{name}: raw run", 1.2)
        for name in BACKENDS
    ),
    *(
        ratio(f"kavach run over podman run, {name}", f"{name}: kavach run", f"{name}: podman run", 0.5)
        for name in ("runc", "crun")
    ),
    ratio("import kavach_core, all of it, over its dependencies", "import kavach_core", "import dependencies", 1.15),
    ratio("kavach --help over the dependencies", "kavach --help", "import dependencies", 0.5),
    ratio("kavach --version over the dependencies", "kavach --version", "import dependencies", 0.5),
    *(
        Bar(
            f"ms of exec above a bare vfork+exec inside, {name}",
            1.0,
            (f"{name}: exec", f"{name}: vfork+exec inside"),
            operator.sub,
        )
        for name in BACKENDS
    ),
    *(
        Bar(
            f"commands per second in 16 boxes over raw exec, {name}",
            _PER_SECOND[name],
            (f"{name}: kavach, commands/s", f"{name}: raw exec, commands/s"),
            at_least=True,
        )
        for name in BACKENDS
    ),
    *(
        ratio(f"pool claim and first command over warm, {name}", f"{name}: claim", f"{name}: warm", 2.0)
        for name in BACKENDS
    ),
    *(figure(f"ms of close, {name}", f"{name}: close", _CLOSE_MS[name]) for name in BACKENDS),
    figure("MB/s of a file of 50 MB written and read, runc", "runc: files, MB/s", 200.0, at_least=True),
    figure("MB/s of standard output, runc", "runc: stdout, MB/s", 300.0, at_least=True),
    *(
        figure(f"ms of host CPU in a second of an idle box, {name}", f"{name}: idle, ms CPU/s", 1.0)
        for name in BACKENDS
    ),
)


def verdicts(into: Measurements) -> list[dict[str, Any]]:
    """Return every bar that could be measured."""
    rows = []
    for bar in BARS:
        if into.has(*bar.cases):
            value = bar.value(into)
            holds = value >= bar.limit if bar.at_least else value <= bar.limit
            kind = "at least" if bar.at_least else "at most"
            rows.append({"what": bar.what, "is": round(value, 3), "bar": bar.limit, "kind": kind, "holds": holds})
    return rows
