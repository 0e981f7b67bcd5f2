"""What the documentation says of other libraries: that it is complete and agrees with itself.

What it says is found by ``nox -s compat``. Nothing here depends on which versions of them are published.
"""

import ast
import tomllib

import pytest
from compat import installing, results
from support.example_modules import ROOT

COMPAT = ROOT / "tests" / "compat"
LIBRARIES = tomllib.loads((COMPAT / "works_inside.toml").read_text("utf-8"))
# It has no tests of a library that takes a client: they are redis-py's own.
NOT_A_LIBRARY = {"redis-py-cluster"}
each_library = pytest.mark.parametrize("name", LIBRARIES)


def libraries_that_are_run():
    """The libraries of ``tests/compat/run.py``, read from its text: it imports its neighbours as a script does."""
    for statement in ast.parse((COMPAT / "run.py").read_text("utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="LIBRARIES")], value=ast.Dict(keys=keys)):
                return set(map(ast.literal_eval, keys))
    raise AssertionError("run.py has no LIBRARIES")


def differences_of(name):
    path = COMPAT / f"differences_{name}.toml"
    return tomllib.loads(path.read_text("utf-8"))["difference"] if path.exists() else []


def test_each_library_that_is_run_is_documented_with_its_result():
    assert libraries_that_are_run() - NOT_A_LIBRARY == LIBRARIES.keys() == results.read().keys()


@each_library
def test_library_has_a_line_of_code_and_what_it_brings(name):
    library = LIBRARIES[name]

    assert ast.parse(library["code"]).body
    assert library["gain"].endswith(".")
    assert all(command.startswith("pip install ") for command in library["install"])
    assert "aioredis_monitored" in " ".join(library["install"])


@each_library
def test_tests_that_do_not_pass_are_explained(name):
    found = results.read()[name]

    assert 0 < found.passed <= found.compared
    assert found.passed == found.compared or any(not each.get("at_times") for each in differences_of(name))
    assert all(each["reason"] for each in differences_of(name))


@each_library
def test_results_name_whose_tests_they_are(name):
    found = results.read()[name]

    assert found.has_calls is (COMPAT / f"calls_of_{name.replace('-', '_')}.py").exists()
    assert found.has_own or found.has_calls


def test_documented_override_is_the_one_that_is_run():
    page = (ROOT / "docs" / "guides" / "works-inside.md").read_text("utf-8")

    assert f'override-dependencies = ["{installing.OVERRIDE}"]' in page


@pytest.fixture
def noted(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    found = results.Result("1.0", "8.1.0", has_own=True, has_calls=False, compared=10, passed=9, resolved="1.0")
    results.write("library", found)
    return found


def test_result_that_is_noted_is_found_again_with_its_day(noted):
    written = results.read()["library"]

    assert written.date
    assert [] == results.differing("library", noted)
    assert [] == results.differing("library", written)


@pytest.mark.parametrize("change", [{"version": "1.1"}, {"passed": 10}, {"resolved": "0.9"}])
def test_result_other_than_noted_is_reported(noted, change):
    (field, value), *_ = change.items()
    found = results.Result(**{**vars(noted), **change})

    (line,) = results.differing("library", found)

    assert f"says {field} {getattr(noted, field)!r}, found {value!r}" in line


def test_library_without_noted_result_is_reported(noted):
    assert ["other: is not in results.json"] == results.differing("other", noted)
