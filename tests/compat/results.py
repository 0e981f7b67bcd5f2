"""What the compat run has found of each library, as the documentation shows it: ``results.json``."""

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).with_name("results.json")
# When it was found is not a finding.
_WHEN = "date"


@dataclass(frozen=True)
class Result:
    """What was found of a library.

    Attributes:
        version: The library's version, the newest that is published.
        redis: redis-py's version.
        has_own: Whether the tests are the library's own.
        has_calls: Whether tests that are made here make the library's calls.
        compared: The number of tests that pass with redis-py's client, and use it.
        passed: The number of these that pass with our client; the others are listed as different.
        resolved: The version that a resolver takes if asked for both packages by their documented requirements.
        date: The day, in UTC.
    """

    version: str
    redis: str
    has_own: bool
    has_calls: bool
    compared: int
    passed: int
    resolved: str
    date: str = ""


def read() -> dict[str, Result]:
    """Return the noted results, by the library's name."""
    if not FILE.exists():
        return {}
    return {name: Result(**noted) for name, noted in json.loads(FILE.read_text("utf-8")).items()}


def write(name: str, found: Result) -> None:
    """Note a library's result, with today's date."""
    noted = {known: asdict(result) for known, result in read().items()}
    noted[name] = {**asdict(found), _WHEN: datetime.now(UTC).date().isoformat()}
    FILE.write_text(json.dumps(dict(sorted(noted.items())), indent=2) + "\n", "utf-8")


def differing(name: str, found: Result) -> list[str]:
    """Return a line for each thing of which the file says other than what was found."""
    noted = read().get(name)
    if noted is None:
        return [f"{name}: is not in {FILE.name}"]
    names = [field.name for field in fields(Result) if field.name != _WHEN]
    return [
        f"{name}: {FILE.name} says {field} {getattr(noted, field)!r}, found {getattr(found, field)!r}"
        for field in names
        if getattr(noted, field) != getattr(found, field)
    ]
