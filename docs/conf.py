"""Configuration of Sphinx; ``nox -s docs`` builds the documentation."""  # noqa: INP001 - Sphinx's script, not a package

import sys
from pathlib import Path

import aioredis_monitored

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "aioredis_monitored"
author = "the aioredis_monitored developers"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name for it
version = release = aioredis_monitored.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "package_tables",
    "references",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True

html_theme = "furo"
html_title = f"aioredis_monitored {release}"
html_theme_options = {
    "source_repository": "https://github.com/aioredis-monitored/aioredis_monitored/",
    "source_branch": "HEAD",
    "source_directory": "docs/",
}

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
# A field list in the class: autodoc shows a dataclass's fields only if each has a docstring.
napoleon_use_ivar = True
napoleon_numpy_docstring = False

copybutton_exclude = ".linenos, .gp, .go"
