"""What the client must show and aims at, and whether this run shows it."""

from typing import Any, NamedTuple

from figures import Results
from matrix import BASE, LIMIT, MANY, Cell


class Bound(NamedTuple):
    """One row: a figure and how large it must be, or, with ``at_most``, how small."""

    text: str
    value: float | None
    must: float
    aim: float | None = None
    unit: str = "x"
    at_most: bool = False

    def reached(self, bound: float | None) -> str:
        """Whether the bound is kept, in words."""
        if bound is None:
            return ""
        told = {None: "not measured", True: "yes", False: "NO"}[self.keeps(bound)]
        return f"{self.show(bound)}: {told}"

    def keeps(self, bound: float) -> bool | None:
        """Whether the bound is kept, if that is known."""
        if self.value is None:
            return None
        return self.value <= bound if self.at_most else self.value >= bound

    def show(self, value: float) -> str:
        """The figure with its unit."""
        return f"{value:.0%}" if self.unit == "%" else f"{value:.3g}{self.unit}"


def bounds(named: dict[str, Any], results: Results) -> list[Bound]:
    """All rows, from one run."""
    recording = named.get("recording")

    def recorded_beyond(name: str) -> float | None:
        return recording[name] if isinstance(recording, dict) else None

    def of_base(client: str, callers: int) -> float | None:
        return at(client, callers, BASE)

    def at(client: str, callers: int, other: str) -> float | None:
        return results.ratio(Cell(client, "get", callers), Cell(other, "get", callers))

    own, recorded = "ours/no-sdk", "ours/everything"
    many = Cell(own, "get", 1024)
    small, of_pool = Cell(own, "large", 8), Cell(BASE, "large", 8)
    return [
        Bound("no SDK, 128 callers, throughput", of_base(own, MANY), 6, 10),
        Bound("no SDK, 1 caller", of_base(own, 1), 1.3, 1.7),
        Bound("1 % sampled + duration metric, 128 callers", of_base("ours/sampled", MANY), 2.5, 3),
        Bound("every span recorded + duration metric, 128 callers", of_base(recorded, MANY), 1.3, 1.5),
        Bound("… against redis-py with contrib spans + native metrics", at(recorded, MANY, "redis_py/both"), 4, 6),
        Bound("… client CPU per command beyond the SDK alone", beyond_sdk(results), 20, 12, " µs", at_most=True),
        Bound("the telemetry's own code, no SDK", recorded_beyond("no SDK"), 3, unit=" µs", at_most=True),
        Bound("… beyond the SDK's point", recorded_beyond("metrics"), 4, unit=" µs", at_most=True),
        Bound("… beyond the SDK's span and point", recorded_beyond("everything"), 6, unit=" µs", at_most=True),
        Bound("no SDK, 128 callers, against valkey-glide", at(own, MANY, "glide/plain"), 2, 3),
        Bound("no SDK, 128 callers, share of the limit", at(own, MANY, LIMIT), 0.25, 0.45, "%"),
        Bound("1,024 callers: connections", results.figure(many, "connections"), 2, unit="", at_most=True),
        Bound("1,024 callers: throughput by that of 128", results.ratio(many, many._replace(callers=MANY)), 0.8),
        Bound(
            "small GETs beside 1 MB: p99 by redis-py's", results.ratio(small, of_pool, "p99_ms"), 1, 0.4, at_most=True
        ),
    ]


def beyond_sdk(results: Results) -> float | None:
    """Client CPU for a command with a span and a point, less what the SDK takes for such ones."""
    recorded = Cell("ours/everything", "get", MANY)
    alone = "sdk/exemplar" if any(results.telemetry(recorded, "exemplars")) else "sdk/plain"
    return results.difference(recorded, recorded._replace(client=alone), "cpu_us")


def verdict(named: dict[str, Any], results: Results) -> str:
    """The table of must and aim."""
    return table_of(bounds(named, results), "against redis-py's pool unless said otherwise")


def table_of(rows: list[Bound], title: str) -> str:
    """A row for each."""
    lines = [
        f"| {b.text} | {'-' if b.value is None else b.show(b.value)} | {b.reached(b.must)} | {b.reached(b.aim)} |\n"
        for b in rows
    ]
    head = f"| {title} | measured | must | aim |\n| --- | --: | --- | --- |\n"
    return head + "".join(lines)
