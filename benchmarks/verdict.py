"""The bounds that the client must reach and those that it aims at, and whether a run meets them."""

from typing import Any, NamedTuple

from figures import Results
from matrix import BASE, LIMIT, MANY, Cell


class Bound(NamedTuple):
    """A figure and its bounds: the least that it must and should be, or the most with ``at_most``."""

    text: str
    value: float | None
    must: float
    aim: float | None = None
    unit: str = "x"
    at_most: bool = False

    def describe(self, bound: float | None) -> str:
        """Format a bound, and whether it is met."""
        if bound is None:
            return ""
        answer = {None: "not measured", True: "yes", False: "NO"}[self.is_met(bound)]
        return f"{self.show(bound)}: {answer}"

    def is_met(self, bound: float) -> bool | None:
        """Return whether the bound is met; ``None`` if the figure was not measured."""
        if self.value is None:
            return None
        return self.value <= bound if self.at_most else self.value >= bound

    def show(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{value:.0%}" if self.unit == "%" else f"{value:.3g}{self.unit}"


def bounds(metadata: dict[str, Any], results: Results) -> list[Bound]:
    """List the bounds with the figures of one run."""
    recording = metadata.get("recording")

    def recorded_beyond(name: str) -> float | None:
        return recording[name] if isinstance(recording, dict) else None

    def of_base(client: str, callers: int) -> float | None:
        return at(client, callers, BASE)

    def at(client: str, callers: int, other: str) -> float | None:
        return results.ratio(Cell(client, "get", callers), Cell(other, "get", callers))

    plain, recorded = "ours/no-sdk", "ours/everything"
    many = Cell(plain, "get", 1024)
    small, of_pool = Cell(plain, "large", 8), Cell(BASE, "large", 8)
    return [
        Bound("no SDK, 128 callers", of_base(plain, MANY), 9, 10),
        Bound("metrics, 128 callers", of_base("ours/metrics", MANY), 5.5, 7),
        Bound("1 % of traces + metrics, 128 callers", of_base("ours/sampled", MANY), 5, 6.5),
        Bound("every span + metrics, 128 callers", of_base(recorded, MANY), 2.5, 3.2),
        Bound("… against redis-py with contrib spans + native metrics", at(recorded, MANY, "redis_py/both"), 8),
        Bound("every span + metrics, OTLP/HTTP, 128 callers", of_base("ours/otlp", MANY), 0.9, 1.1),
        Bound("no SDK, 1 caller", of_base(plain, 1), 1.3),
        Bound("metrics, 1 caller", of_base("ours/metrics", 1), 1.2, 1.3),
        Bound("1 % of traces + metrics, 1 caller", of_base("ours/sampled", 1), 1.15, 1.25),
        Bound("every span + metrics, 1 caller", of_base(recorded, 1), 1, 1.15),
        Bound(
            "client CPU of a span and a point beyond the SDK alone", beyond_sdk(results), 0, unit=" µs", at_most=True
        ),
        Bound("the telemetry's own code, no SDK", recorded_beyond("no SDK"), 3, unit=" µs", at_most=True),
        Bound("… beyond the SDK's point", recorded_beyond("metrics"), 0, unit=" µs", at_most=True),
        Bound("… beyond the SDK's span and point", recorded_beyond("everything"), 0, unit=" µs", at_most=True),
        Bound("no SDK, 128 callers, against valkey-glide", at(plain, MANY, "glide/plain"), 2, 3),
        Bound("no SDK, 128 callers, share of the limit", at(plain, MANY, LIMIT), 0.25, 0.45, "%"),
        Bound("1,024 callers: connections", results.figure(many, "connections"), 2, unit="", at_most=True),
        Bound("1,024 callers: throughput by that of 128", results.ratio(many, many._replace(callers=MANY)), 0.8),
        Bound(
            "small GETs beside 1 MB: p99 by redis-py's", results.ratio(small, of_pool, "p99_ms"), 1, 0.4, at_most=True
        ),
    ]


def beyond_sdk(results: Results) -> float | None:
    """Return the client's CPU time for a command with a span and a point, minus the SDK's for the same."""
    recorded = Cell("ours/everything", "get", MANY)
    alone = "sdk/exemplar" if any(results.telemetry(recorded, "exemplars")) else "sdk/plain"
    return results.difference(recorded, recorded._replace(client=alone), "cpu_us")


def verdict(metadata: dict[str, Any], results: Results) -> str:
    """Format the table of bounds."""
    return bounds_table(bounds(metadata, results), "against redis-py's pool unless said otherwise")


def bounds_table(rows: list[Bound], title: str) -> str:
    """Format a table with a row for each bound."""
    lines = [
        f"| {b.text} | {'-' if b.value is None else b.show(b.value)} | {b.describe(b.must)} | {b.describe(b.aim)} |\n"
        for b in rows
    ]
    head = f"| {title} | measured | must | aim |\n| --- | --: | --- | --- |\n"
    return head + "".join(lines)
