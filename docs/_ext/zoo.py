"""The directive `recipe-zoo`: every recipe by method, read from the code when the site is built.

A method is a page of `docs/methods`. A recipe belongs to the page that has the name of the recipe's file, or
else to the one that names this file. Its papers are those in the file's docstring, by their arXiv number.
"""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import fiddle as fdl
from docutils import nodes
from docutils.statemachine import StringList
from papers import PAPERS
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from boxwright.recipes import table

METHODS = Path(__file__).resolve().parents[1] / "methods"


def pages() -> dict[str, list[str]]:
    """Names of the recipes on each page of `docs/methods`, in the order of the table of recipes."""
    texts = {page.stem: page.read_text(encoding="utf-8") for page in sorted(METHODS.glob("*.md"))}
    found: dict[str, list[str]] = {}
    for name, function in table().items():
        module = function.__module__.rpartition(".")[2]
        found.setdefault(module if module in texts else _page(name, module, texts), []).append(name)
    return found


def _page(name: str, module: str, texts: dict[str, str]) -> str:
    """The page that names a recipe's file, or else (the demo's) the one whose list has the recipe."""
    for page, text in texts.items():
        if f"`boxwright/recipes/{module}.py`" in text:
            return page
    for page, text in texts.items():
        if any(fnmatch(name, f"{start}*") for start in re.findall(r"\{recipe-table\} (\S+)", text)):
            return page
    raise ValueError(f"no page of docs/methods lists the recipe {name}")


def title(page: str) -> str:
    """The heading of a page."""
    return (METHODS / f"{page}.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def papers_of(names: list[str]) -> list[str]:
    """Keys of the papers that the files of some recipes name, without repetition."""
    by_number = {paper.arxiv: key for key, paper in PAPERS.items() if paper.arxiv}
    texts = [sys.modules[table()[name].__module__].__doc__ or "" for name in names]
    return list(
        dict.fromkeys(by_number[n] for text in texts for n in re.findall(r"arXiv:(\d{4}\.\d{5})", text))
    )


def backbone(config: Any) -> str:
    """A backbone's name for a reader, such as "ResNet-50"."""
    kind = fdl.get_callable(config).__name__
    if kind == "ResNet" and config.groups > 1:
        return f"ResNeXt-{config.depth} {config.groups}x{config.width_per_group}d"
    if kind == "ResNet":
        return f"ResNet-{config.depth}"
    if kind == "HRNet":
        return f"HRNet-W{config.width}"
    if kind == "TimmBackbone":
        return "MobileNetV2" if config.name == "mobilenetv2_100" else config.name
    return {"VGG": "VGG-16", "Darknet": "Darknet-53"}.get(kind, kind)


def images(recipe: Any) -> str:
    """How large the images are that a recipe evaluates on."""
    for transform in recipe.eval_transforms:
        if "size" in (arguments := transform.__arguments__):
            return "{} x {}".format(*arguments["size"])
        if "short" in arguments:
            return f"{transform.short} / {transform.long}"
    return "as they are"


def weights(config: Any) -> str:
    """Where a backbone's first weights come from."""
    given = config.weights
    if given is None:
        return "random"
    if given in ("torchvision", "timm"):
        return given
    return "timm" if given.startswith("timm:") else "torchvision" if "_Weights." in given else "OpenMMLab"


def row(name: str) -> list[str]:
    """What stands in a recipe's line."""
    recipe = table()[name]()
    model = recipe.model.backbone
    steps = f"{recipe.epochs} x {recipe.batch_size}"
    return [f"`{name}`", backbone(model), weights(model), images(recipe), steps, ", ".join(recipe.metrics)]


HEAD = ("recipe", "backbone", "weights", "images, px", "epochs x batch", "metrics")


def markdown() -> str:
    """The whole list: a heading, the papers and a table for each method."""
    lines: list[str] = []
    for page, names in pages().items():
        cited = ", ".join(f"{{paper}}`{key}`" for key in papers_of(names))
        lines += [f"## {title(page)}", "", f"[The method](methods/{page}.md). Papers: {cited}", ""]
        lines += ["| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
        lines += ["| " + " | ".join(row(name)) + " |" for name in names]
        lines.append("")
    return "\n".join(lines)


class RecipeZoo(SphinxDirective):
    """All recipes, with a section for each method."""

    def run(self) -> list[nodes.Node]:
        """Sections."""
        found = nodes.Element()
        found.document = self.state.document
        lines = StringList(markdown().splitlines(), source=self.env.doc2path(self.env.docname))
        self.state.nested_parse(lines, 0, found, match_titles=True)
        return found.children


def setup(app: Sphinx) -> dict[str, object]:
    """Register the directive."""
    app.add_directive("recipe-zoo", RecipeZoo)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
