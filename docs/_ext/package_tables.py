"""Generate tables from the package when the documentation is built, so that they cannot differ from the code."""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from inspect import getdoc
from pathlib import Path
from typing import Any, ClassVar

from docutils.nodes import Element, Node
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import aioredis_monitored
from aioredis_monitored import MonitoredRedisError

# The private modules that the tables read.
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.instruments import GAUGES, INSTRUMENTS, Gauge, Instrument
from aioredis_monitored._topology.placement import REVIEWED, SPLIT, Combination, Kind
from aioredis_monitored.config.schema import ALL_OPTIONS

DASHBOARD = resources.files(aioredis_monitored).joinpath("dashboards", "redis.json")
ALERTS = resources.files(aioredis_monitored).joinpath("dashboards", "alerts.yml")
# What the compat run tests and finds.
_COMPAT = Path(__file__).parents[2] / "tests" / "compat"
_WORKS_INSIDE = _COMPAT / "works_inside.toml"
_RESULTS = _COMPAT / "results.json"

_LOGGER = logging.getLogger(__name__)
_DOCUMENTATION = "https://aioredis-monitored.readthedocs.io/en/latest/"
_PREFIXES = ("aioredis_monitored.", "db.", "error.", "messaging.", "network.", "server.")


def metrics() -> list[Instrument | Gauge]:
    """Return all metrics of a pool, by name."""
    return sorted((*INSTRUMENTS, *GAUGES), key=lambda metric: metric.name)


def attribute_names() -> set[str]:
    """Return the names of all attributes, of spans and of points."""
    constants = {
        value
        for module in (semconv, semconv_ext)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value.startswith(_PREFIXES)
    }
    return constants - {metric.name for metric in metrics()}


class _Table(SphinxDirective):
    """A Markdown table."""

    header: ClassVar[tuple[str, ...]]

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield the rows of the table.

        Raises:
            ValueError: The rows cannot be made.
        """
        raise NotImplementedError

    def run(self) -> list[Node]:
        """Return the table's nodes."""
        try:
            rows = list(self.rows())
        except (KeyError, ValueError) as error:
            raise self.error(str(error)) from error
        lines = [self.header, ["---"] * len(self.header), *rows]
        # An unescaped bar would begin the next cell.
        escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        return self.parse_text_to_nodes("\n".join(f"| {line} |" for line in escaped))


class OptionTable(_Table):
    """A table of the configuration's keys."""

    header = ("key", "default", "accepts", "meaning")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each key."""
        for option in ALL_OPTIONS.values():
            meaning = re.sub("``(.*?)``", r"`\1`", option.description)
            accepts = option.accepts.replace("*", r"\*")
            yield f"`{option.name}`", f"`{option.default or 'none'}`", accepts, meaning


class MetricTable(_Table):
    """A table of metrics; the argument is the prefix of their names."""

    required_arguments = 1
    header = ("metric", "instrument", "unit", "description")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each metric."""
        found = [metric for metric in metrics() if metric.name.startswith(self.arguments[0])]
        if not found:
            raise ValueError(f"no metric begins with {self.arguments[0]}")
        for metric in found:
            yield f"`{metric.name}`", metric.kind, f"`{metric.unit}`", metric.description


class BoundTable(_Table):
    """A table of the histograms' bucket bounds."""

    header = ("histogram", "bounds in seconds")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each set of bounds."""
        named: dict[tuple[float, ...], list[str]] = {}
        for metric in metrics():
            if isinstance(metric, Instrument) and metric.bounds:
                named.setdefault(tuple(metric.bounds), []).append(f"`{metric.name}`")
        for bounds, names in named.items():
            yield ", ".join(names), ", ".join(f"{bound:g}" for bound in bounds)


class AttributeTable(_Table):
    """A table of attributes; the directive's content gives the meaning of every attribute, and of no other."""

    has_content = True
    header = ("attribute", "meaning")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each attribute.

        Raises:
            ValueError: The content lacks an attribute or has an unknown one.
        """
        texts = dict(line.split(": ", 1) for line in self.content if line)
        names = attribute_names()
        if missing := sorted(names - texts.keys()):
            raise ValueError(f"attributes without a meaning: {', '.join(missing)}")
        if unknown := sorted(texts.keys() - names):
            raise ValueError(f"unknown attributes: {', '.join(unknown)}")
        for name, text in texts.items():
            yield f"`{name}`", text


class ErrorTable(_Table):
    """A table of the package's errors: their base classes, and when they are raised."""

    header = ("error", "is also", "means")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each error."""
        for name, error in errors().items():
            bases = [base for base in error.__bases__ if base is not MonitoredRedisError]
            shown = ", ".join(f"`{_importable(base)}`" for base in bases)
            summary, *_ = (getdoc(error) or "").split("\n\n")
            yield f"{{py:exc}}`~aioredis_monitored.{name}`", shown, " ".join(summary.split())


class PanelTable(_Table):
    """A table of the dashboard's panels with their descriptions."""

    header = ("panel", "shows")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each panel."""
        for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
            if panel["type"] != "row":
                yield panel["title"], panel["description"]


class PlacementTable(_Table):
    """A table of the commands that a cluster's client places by name; the argument is the name of a ``Kind``."""

    required_arguments = 1
    header = ("commands", "replies", "because")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for all commands that have the same combination and the same reason."""
        alike: dict[tuple[Combination | None, str], list[str]] = {}
        for name, placement in {**REVIEWED, **SPLIT}.items():
            if placement.kind is Kind[self.arguments[0]]:
                alike.setdefault((placement.combination, placement.reason), []).append(f"`{name}`")
        if not alike:
            raise ValueError(f"no command is placed at {self.arguments[0]}")
        for (combination, reason), names in alike.items():
            yield ", ".join(names), combination.value if combination else "", reason


class LibraryTable(_Table):
    """A table of the libraries in which the client works: what the compat run has found of each."""

    header = ("library", "tests that pass", "connections", "installed together")

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield a row for each library."""
        self.env.note_dependency(str(_WORKS_INSIDE))
        self.env.note_dependency(str(_RESULTS))
        for name, (library, found) in libraries().items():
            title = f"[{library['title']}](#inside-{name}) {found['version']}"
            whose = [text for known, text in (("has_own", "its own"), ("has_calls", "its calls")) if found[known]]
            tests = f"{found['passed']} of {found['compared']}: {' and '.join(whose)}"
            yield title, tests, _connections(library), _installed(library, found)


class LibrarySections(SphinxDirective):
    """A section for each library in which the client works: how it is handed in and what that brings."""

    def run(self) -> list[Node]:
        """Return the sections."""
        text = "\n\n".join(_section(name, library, found) for name, (library, found) in libraries().items())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def libraries() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return what is said of each library and what was found of it, by its name."""
    results = json.loads(_RESULTS.read_text("utf-8"))
    said = tomllib.loads(_WORKS_INSIDE.read_text("utf-8"))
    return {name: (library, results[name]) for name, library in said.items()}


def _connections(library: dict[str, Any]) -> str:
    ours, theirs = library["connections"], library["instead_of"]
    return f"{ours}, not {theirs}" if ours < theirs else str(ours)


def _installed(library: dict[str, Any], found: dict[str, Any]) -> str:
    """Say whether a resolver finds both, and what to do if it does not."""
    if found["resolved"] == found["version"]:
        return "yes"
    commands = ", ".join(f"`{command}`" for command in library["install"])
    return f"`{library['requires']}`: no, a resolver takes version {found['resolved']}. Instead: {commands}"


def _section(name: str, library: dict[str, Any], found: dict[str, Any]) -> str:
    parts = [f"(inside-{name})=\n### {library['title']}", f"```python\n{library['code'].strip()}\n```", library["gain"]]
    differences = _COMPAT / f"differences_{name}.toml"
    if differences.exists():
        for each in tomllib.loads(differences.read_text("utf-8"))["difference"]:
            tests = ", ".join(f"`{test}`" for test in each["tests"])
            when = "At times different, and not counted" if each.get("at_times") else "Different"
            parts.append(f"{when}: {tests}. {each['reason']}")
    parts.append(f"Tested with version {found['version']} on redis-py {found['redis']}, {found['date']}.")
    return "\n\n".join(parts)


class ErrorReference(SphinxDirective):
    """The API reference of each error."""

    def run(self) -> list[Node]:
        """Return autodoc's nodes for all errors."""
        lines = [f".. autoexception:: aioredis_monitored.{name}\n" for name in ("MonitoredRedisError", *errors())]
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "\n```")


def errors() -> dict[str, type[Exception]]:
    """Return the errors that are raised, by name."""
    public = {name: getattr(aioredis_monitored, name) for name in sorted(aioredis_monitored.__all__)}
    return {
        name: found
        for name, found in public.items()
        if isinstance(found, type) and issubclass(found, MonitoredRedisError) and found is not MonitoredRedisError
    }


def _importable(error: type) -> str:
    return error.__name__ if error.__module__ == "builtins" else f"{error.__module__}.{error.__name__}"


def _anchors(env: BuildEnvironment, page: str) -> set[str]:
    return {anchor for node in env.get_doctree(page).findall(Element) for anchor in node["ids"]}


def check_runbooks(_: Sphinx, env: BuildEnvironment) -> None:
    """Warn if an alert's ``runbook_url`` leads to no heading."""
    text = ALERTS.read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", text)
    urls = re.findall(r"runbook_url: (\S+)", text)
    if len(alerts) != len(urls):
        _LOGGER.warning("%d alerts have %d runbook URLs", len(alerts), len(urls))
    for url in urls:
        page, _, anchor = url.removeprefix(_DOCUMENTATION).partition("#")
        name = page.removesuffix(".html")
        if name not in env.all_docs or anchor not in _anchors(env, name):
            _LOGGER.warning("runbook_url leads nowhere: %s", url)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("option-table", OptionTable)
    app.add_directive("metric-table", MetricTable)
    app.add_directive("bound-table", BoundTable)
    app.add_directive("attribute-table", AttributeTable)
    app.add_directive("error-table", ErrorTable)
    app.add_directive("panel-table", PanelTable)
    app.add_directive("placement-table", PlacementTable)
    app.add_directive("library-table", LibraryTable)
    app.add_directive("library-sections", LibrarySections)
    app.add_directive("error-reference", ErrorReference)
    app.connect("env-updated", lambda app, env: check_runbooks(app, env) or [])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
