"""The directive `recipe-table`: recipes and their first lines, taken from the code when the site is built."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from boxwright.recipes import recipes

logger = logging.getLogger(__name__)


class RecipeTable(SphinxDirective):
    """All recipes, or those whose names begin with the argument; `*` in it stands for anything."""

    optional_arguments = 1
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """A definition list; none found is a warning."""
        prefix = self.arguments[0] if self.arguments else ""
        found = {name: line for name, line in recipes().items() if fnmatch(name, f"{prefix}*")}
        if not found:
            logger.warning("no recipe begins with %r", prefix, location=self.get_location())
        items = nodes.definition_list()
        for name, line in found.items():
            term = nodes.term("", "", nodes.literal(name, name))
            items += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(line, line)))
        return [items]


def setup(app: Sphinx) -> dict[str, object]:
    """Register the directive."""
    app.add_directive("recipe-table", RecipeTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
