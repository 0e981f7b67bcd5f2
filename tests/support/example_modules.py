"""Write the documents' Python examples to modules for type checkers, and their example applications beside them.

Usage: example_modules.py DIRECTORY
"""

import re
import shutil
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    """Return the code blocks of a language, at any indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


def write_modules(directory):
    """Write a module for each document with Python examples; an example may use names of earlier ones.

    The example applications keep their names, as documents import from them.
    """
    for path in EXAMPLES:
        shutil.copy(path, directory)
    for path in DOCUMENTS:
        if examples := blocks(path, "python"):
            first = next((number for number, text in enumerate(examples) if _awaits(text)), len(examples))
            module = "\n".join(examples[:first])
            if examples[first:]:
                body = textwrap.indent("\n".join(examples[first:]), "    ")
                module = f"{module}\nasync def examples() -> None:\n{body}"
            name = re.sub(r"\W", "_", name_of(path.with_suffix("")))
            (directory / f"{name}.py").write_text(module, "utf-8")


def _awaits(text):
    """Whether it awaits outside of functions."""
    try:
        compile(text, "example", "exec")
    except SyntaxError:
        return True
    return False


if __name__ == "__main__":
    write_modules(Path(sys.argv[1]))
