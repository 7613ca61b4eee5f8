"""Sphinx configuration of the documentation site; `make docs` builds it and takes warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from boxwright import __version__

project = "Boxwright"
author = "The Boxwright authors"
copyright = "The Boxwright authors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docstrings",
    "papers",
    "recipe_table",
    "zoo",
]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = "Boxwright"
html_static_path: list[str] = []

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Names of annotations, not what they stand for.
autodoc_type_aliases = {
    name: name for name in ("AllPositive", "Amount", "Count", "OddCount", "Positive", "Share")
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
