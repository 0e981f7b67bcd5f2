"""What a check has found, as data, and how it is printed: a line each, the worst last, or one JSON object."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final


class Verdict(IntEnum):
    """How bad a finding is, the worst last."""

    OK = 0
    UNKNOWN = 1
    WARNING = 2
    FAULT = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        check: The name of the check.
        verdict: How bad it is. What may not be looked at is unknown, and no fault.
        text: What is so, in one line, without secrets.
        advice: What to do, or what right is missing; empty if there is nothing to do.
        servers: The servers that it is about, if there are several; empty for the only one, or for none.
    """

    check: str
    verdict: Verdict
    text: str
    advice: str = ""
    servers: tuple[str, ...] = ()


def ok(check: str, text: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.OK, text)


def unknown(check: str, text: str, advice: str) -> Finding:
    """Return that something could not be looked at, and what is needed for it."""
    return Finding(check, Verdict.UNKNOWN, text, advice)


def warning(check: str, text: str, advice: str) -> Finding:
    """Return what works, and may fail later."""
    return Finding(check, Verdict.WARNING, text, advice)


def fault(check: str, text: str, advice: str) -> Finding:
    """Return what does not work."""
    return Finding(check, Verdict.FAULT, text, advice)


def at(finding: Finding, *servers: str) -> Finding:
    """Return a finding with the servers that it is about."""
    return replace(finding, servers=servers)


def worst_last(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings in the order in which they are printed; what several servers have in common is one finding."""
    servers: dict[tuple[str, Verdict, str, str], tuple[str, ...]] = {}
    for each in findings:
        key = (each.check, each.verdict, each.text, each.advice)
        servers[key] = (*servers.get(key, ()), *each.servers)
    merged = [Finding(*key, tuple(dict.fromkeys(where))) for key, where in servers.items()]
    return sorted(merged, key=lambda each: each.verdict)


def has_fault(findings: Iterable[Finding]) -> bool:
    """Whether one of the findings is a fault."""
    return any(each.verdict is Verdict.FAULT for each in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Return a line for each finding."""
    return "".join(f"{_line(each)}\n" for each in findings)


def as_json(findings: Sequence[Finding], exit_code: int) -> str:
    """Return one object: ``exit_code`` and ``findings``."""
    rows = [
        {
            "check": each.check,
            "verdict": each.verdict.name.lower(),
            "text": each.text,
            "advice": each.advice,
            "servers": each.servers,
        }
        for each in findings
    ]
    return json.dumps({"exit_code": exit_code, "findings": rows}, indent=2) + "\n"


_MAX_NAMED: Final = 3
_COLUMNS: Final = max(len(each.name) for each in Verdict)


def _line(finding: Finding) -> str:
    further = len(finding.servers) - _MAX_NAMED
    named = [*finding.servers[:_MAX_NAMED], *([f"{further} more"] if further > 0 else [])]
    where = f" ({', '.join(named)})" if named else ""
    name = finding.verdict.name if finding.verdict is Verdict.FAULT else finding.verdict.name.lower()
    line = f"{name:<{_COLUMNS}}  {finding.check}: {finding.text}{where}"
    if finding.advice:
        line += f"; {'needs' if finding.verdict is Verdict.UNKNOWN else 'do this:'} {finding.advice}"
    # A server may have sent any text.
    return "".join(each if each.isprintable() else "?" for each in line)
