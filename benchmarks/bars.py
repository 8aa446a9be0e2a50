"""What has to hold: ratios of two cases measured side by side, differences, and a few absolute figures."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from measure import Measurements


@frozen
class Ratio:
    """One case may take at most so many times as long as another; with ``at_least`` they are rates: more is better."""

    what: str
    case: str
    over: str
    limit: float
    at_least: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases it needs."""
        return (self.case, self.over)

    def value(self, into: Measurements) -> float:
        """Return the ratio of the medians."""
        return into.median(self.case) / into.median(self.over)


@frozen
class Difference:
    """One case may take at most so many milliseconds more than another."""

    what: str
    case: str
    over: str
    limit: float
    at_least: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases it needs."""
        return (self.case, self.over)

    def value(self, into: Measurements) -> float:
        """Return the difference of the medians."""
        return into.median(self.case) - into.median(self.over)


@frozen
class Figure:
    """The median of one case has to be at most, or at least, so much."""

    what: str
    case: str
    limit: float
    at_least: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """The case it needs."""
        return (self.case,)

    def value(self, into: Measurements) -> float:
        """Return the median."""
        return into.median(self.case)


Bar = Ratio | Difference | Figure

BACKENDS = ("runc", "crun", "gvisor")
_PER_SECOND = {"runc": 10.0, "crun": 4.0, "gvisor": 1.7}
_CLOSE_MS = {"runc": 15.0, "crun": 15.0, "gvisor": 40.0}

BARS: tuple[Bar, ...] = (
    *(
        Ratio(f"warm exec over fork+exec, {name}", f"{name}: kavach warm", f"{name}: fork+exec", 1.6)
        for name in ("runc", "crun")
    ),
    Ratio("warm exec over runc exec", "runc: kavach exec", "runc: raw exec", 0.1),
    Ratio("warm exec over crun exec", "crun: kavach exec", "crun: raw exec", 0.25),
    Ratio("warm exec over runsc exec", "gvisor: kavach exec", "gvisor: raw exec", 0.65),
    *(
        Ratio(f"cold box over its own run, {name}", f"{name}: kavach cold", f"{name}: raw run", 1.2)
        for name in BACKENDS
    ),
    *(
        Ratio(f"kavach run over podman run, {name}", f"{name}: kavach run", f"{name}: podman run", 0.5)
        for name in ("runc", "crun")
    ),
    Ratio("import kavach_core, all of it, over its dependencies", "import kavach_core", "import dependencies", 1.15),
    Ratio("kavach --help over the dependencies", "kavach --help", "import dependencies", 0.5),
    Ratio("kavach --version over the dependencies", "kavach --version", "import dependencies", 0.5),
    *(
        Difference(
            f"ms of exec above a bare vfork+exec inside, {name}", f"{name}: exec", f"{name}: vfork+exec inside", 1.0
        )
        for name in BACKENDS
    ),
    *(
        Ratio(
            f"commands per second in 16 boxes over raw exec, {name}",
            f"{name}: kavach, commands/s",
            f"{name}: raw exec, commands/s",
            _PER_SECOND[name],
            at_least=True,
        )
        for name in BACKENDS
    ),
    *(
        Ratio(f"pool claim and first command over warm, {name}", f"{name}: claim", f"{name}: warm", 2.0)
        for name in BACKENDS
    ),
    *(Figure(f"ms of close, {name}", f"{name}: close", _CLOSE_MS[name]) for name in BACKENDS),
    Figure("MB/s of a file of 50 MB written and read, runc", "runc: files, MB/s", 200.0, at_least=True),
    Figure("MB/s of standard output, runc", "runc: stdout, MB/s", 300.0, at_least=True),
    *(
        Figure(f"ms of host CPU in a second of an idle box, {name}", f"{name}: idle, ms CPU/s", 1.0)
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
