"""Words that the project does not use, because each has a plain word in its place."""

import re
from pathlib import Path

import pytest

import aioredis_monitored

PACKAGE = Path(aioredis_monitored.__file__).parent
ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".md", ".lua", ".yml", ".toml"}
# Words end where letters end, because names join them by underscores; a text may continue in the next line's comment.
BANNED = re.compile(
    r"(?<![a-z])(whoever|nobody|somebody|surely|heed(s|ed|ing)?|so[\s_#]+many|of[\s_#]+late)(?![a-z])", re.IGNORECASE
)


def texts():
    """The files that people read, by path; this file contains the words as data."""
    folders = [PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "docs"))]
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "aioredis_monitored_pytest.py")]
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES]
    return {path: path.read_text("utf-8") for path in [*found, *pages] if path.exists() and path != Path(__file__)}


def banned_in(text):
    """The line and the word of each place."""
    return [(text.count("\n", 0, found.start()) + 1, found[0]) for found in BANNED.finditer(text)]


def test_texts_contain_no_banned_word():
    found = texts()
    places = [f"{path}:{line}: {word!r}" for path, text in found.items() for line, word in banned_in(text)]

    assert len(found) > 150
    assert not places, "\n".join(["these words have a plain word in their place:", *places])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Nobody waits.", "Nobody"),
        ("def test_whoever_asks_is_answered():", "whoever"),
        ("it is not heeded", "heeded"),
        ("so\n    # many calls", "so\n    # many"),
        ("a key called most of late", "of late"),
    ],
)
def test_banned_word_is_found_in_any_form(text, word):
    assert [(2, word)] == banned_in(f"first line\n{text}")


@pytest.mark.parametrize("text", ["heedless", "leisurely", "also many", "proof later", "of latency"])
def test_word_that_contains_a_banned_one_is_allowed(text):
    assert [] == banned_in(text)
