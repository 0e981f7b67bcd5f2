"""Resolve references to Python objects: to the API page for this package's, to text for others, which must exist."""

import re
from importlib import import_module
from typing import Any

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import aioredis_monitored
from aioredis_monitored import testing

_LOGGER = logging.getLogger(__name__)
_PUBLIC = {"aioredis_monitored": aioredis_monitored, "aioredis_monitored.testing": testing}
# The package's version is on no page.
_NOT_SHOWN = {"aioredis_monitored.__version__"}


def public_names() -> dict[str, Any]:
    """Return the public objects by their full names."""
    return {f"{path}.{name}": getattr(module, name) for path, module in _PUBLIC.items() for name in module.__all__}


def _object_at(path: str) -> Any:
    """Return the object with that dotted path.

    Raises:
        LookupError: No such object exists.
    """
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        try:
            for part in parts[count:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise LookupError(path)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: TextElement) -> Element | None:
    """Resolve references to objects without a page; Sphinx's inventories would have to be downloaded.

    The name of a missing object stays unresolved, which is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    try:
        found = _object_at(target)
    except LookupError:
        return None
    for name, public in public_names().items():
        if found is public and name != target:
            return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)
    # A public name of this package that is on no page must fail.
    return None if target in public_names() else text


def plain_text(_: Sphinx, what: str, __: str, ___: object, ____: object, lines: list[str]) -> None:
    """Keep reStructuredText and Napoleon from reading plain text as markup."""
    for number, line in enumerate(lines):
        # "SHOP_" is no reference. Text in backticks stays unchanged.
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<=\w)_(?=\W|$)", r"\_", part) for part in parts[::2]]
        lines[number] = "``".join(parts)
    if what in {"attribute", "property"}:
        # Napoleon takes text before a colon in the first line for a type.
        lines[0] = lines[0].replace(": ", "; ")


def check_public_names(_: Sphinx, env: BuildEnvironment) -> None:
    """Warn about each public name that no page documents."""
    missing = public_names().keys() - env.domains.python_domain.objects.keys() - _NOT_SHOWN
    for name in sorted(missing):
        _LOGGER.warning("no page documents %s", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handlers."""
    # Before Napoleon reads the docstring.
    app.connect("autodoc-process-docstring", plain_text, priority=100)
    app.connect("missing-reference", resolve)
    app.connect("env-check-consistency", check_public_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
