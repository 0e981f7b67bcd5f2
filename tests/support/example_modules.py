"""Write the documents' Python examples to modules for type checkers.

Usage: example_modules.py DIRECTORY
"""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    """Return the code blocks of a language, at any indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


def write_modules(directory):
    """Write a module for each document with Python examples; an example may use names of earlier ones."""
    for path in DOCUMENTS:
        if examples := blocks(path, "python"):
            name = re.sub(r"\W", "_", name_of(path.with_suffix("")))
            (directory / f"{name}.py").write_text(_module("\n".join(examples)), "utf-8")


def _module(source):
    try:
        compile(source, "examples", "exec")
    except SyntaxError:
        # The examples await outside of functions.
        return f"async def examples() -> None:\n{textwrap.indent(source, '    ')}"
    return source


if __name__ == "__main__":
    write_modules(Path(sys.argv[1]))
