"""The documentation: every Python example runs on a real server, and other blocks are checked as far as possible."""

import ast
import asyncio
import inspect
import logging
import re
import sys
import tomllib
from importlib import resources
from types import ModuleType

import pytest
import yaml
from support.example_modules import DOCUMENTS, EXAMPLES, ROOT, blocks, name_of
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

import aioredis_monitored
from aioredis_monitored import config_from_env

LANGUAGES = {"python", "shell", "yaml", "text", "ini", "json"}


def with_blocks(*languages):
    pages = [path for path in DOCUMENTS if any(blocks(path, language) for language in languages)]
    return pytest.mark.parametrize("path", pages, ids=map(name_of, pages))


def run(path, module):
    """Run a document's Python blocks one after the other as one module; return their number."""
    with asyncio.Runner() as runner:

        def evaluate(example):
            code = compile(
                "\n" * (example.line + example.parsed.line_offset) + example.parsed,
                example.path,
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
            result = eval(code, vars(module))  # noqa: S307 - our own documentation
            if inspect.iscoroutine(result):
                runner.run(result)

        examples = list(Sybil([CodeBlockParser("python", evaluate)]).parse(path).examples())
        for example in examples:
            example.evaluate()
    return len(examples)


@pytest.fixture
def importable_examples(monkeypatch):
    """Let a page import the example application that it shows, anew."""
    monkeypatch.syspath_prepend(EXAMPLES[0].parent)
    yield
    for path in EXAMPLES:
        sys.modules.pop(path.stem, None)


@with_blocks("python")
def test_documentation_python_examples_run(path, server, monkeypatch, request, importable_examples):
    is_for_cluster = path == ROOT / "docs" / "guides" / "cluster.md"
    # Starting one takes two seconds.
    running = request.getfixturevalue("cluster") if is_for_cluster else server
    monkeypatch.setenv("REDIS_URL", running.url)
    # Frameworks look up a function's module there, to resolve its annotations.
    module = ModuleType(f"documentation_{path.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    assert run(path, module) == len(blocks(path, "python"))


def test_code_blocks_have_known_language():
    fences = {
        (name_of(path), language)
        for path in DOCUMENTS
        for language in re.findall(r"^ *```([^\s{`][^\n`]*)$", path.read_text("utf-8"), re.MULTILINE)
    }

    assert set() == {(name, language) for name, language in fences if language not in LANGUAGES}
    assert set() == {name_of(path) for path in DOCUMENTS if "{code-block}" in path.read_text("utf-8")}


@with_blocks("yaml")
def test_documentation_yaml_blocks_parse(path):
    for text in blocks(path, "yaml"):
        assert all(document is not None for document in yaml.safe_load_all(text))


@with_blocks("ini", "shell", "yaml")
def test_environment_variables_are_configuration_keys(path, caplog):
    text = "\n".join(text for language in ("ini", "shell", "yaml") for text in blocks(path, language))
    names = re.findall(r"^ *(?:export )?((?:SHOP_)?REDIS_[A-Z_]+)=", text, re.MULTILINE)
    names += re.findall(r"name: ((?:SHOP_)?REDIS_[A-Z_]+)$", text, re.MULTILINE)
    # A pool's other variables have no effect without its URL.
    environ = dict.fromkeys(names, "x")
    with caplog.at_level(logging.WARNING):
        known = {**config_from_env(environ), **config_from_env(environ, "SHOP_")}

    assert [] == caplog.messages
    assert len(known) == len(set(names))


def test_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def links(text):
    return re.findall(r"\]\(([^)]+)\)", text)


def test_readme_relative_links_lead_to_files():
    relative = [link for link in links((ROOT / "README.md").read_text("utf-8")) if "://" not in link]

    assert relative
    assert [] == [link for link in relative if not (ROOT / link).is_file()]


def test_package_index_readme_has_no_relative_links():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    text = (ROOT / "README.md").read_text("utf-8")
    for substitution in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)

    assert [] == [link for link in links(text) if not link.startswith("https://")]


def test_alerts_have_runbook_section_and_url():
    alerts = resources.files(aioredis_monitored).joinpath("dashboards", "alerts.yml").read_text("utf-8")
    rules = [rule for group in yaml.safe_load(alerts)["groups"] for rule in group["rules"]]
    runbook = (ROOT / "docs" / "observability" / "runbook.md").read_text("utf-8")
    base = "https://aioredis-monitored.readthedocs.io/en/latest/observability/runbook.html#"

    assert {rule["alert"] for rule in rules} == set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE))
    assert {base + rule["alert"].lower() for rule in rules} == {rule["annotations"]["runbook_url"] for rule in rules}


def test_files_named_in_architecture_page_exist():
    package = resources.files(aioredis_monitored)
    text = (ROOT / "docs" / "internals" / "architecture.md").read_text("utf-8")
    files = set(re.findall(r"`(\w+(?:/\w+)*\.py)`", text))
    folders = set(re.findall(r"`(\w+)/`", text))

    assert len(files) >= 9
    assert len(folders) >= 10
    assert set() == {name for name in files if not (package.joinpath(name).is_file() or (ROOT / name).is_file())}
    assert set() == {name for name in folders if not package.joinpath(name).is_dir()}
