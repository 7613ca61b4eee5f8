"""What stands in the pages: blocks of code and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [page for page in PAGES if "_build" not in page.parts]


def name_of(page: Path) -> str:
    """A page's path from the root."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The blocks of a page in some languages; "" for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def lines() -> list[tuple[Path, list[str]]]:
    """The words of every line for a shell that calls one of our programs, comments left out."""
    found = []
    for page in PAGES:
        for block in blocks(page, "", "sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if re.search(r"(^|\s)(boxwright|torchrun|make|python) ", line):
                    found.append((page, shlex.split(line.lstrip("$ "), comments=True)))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every command line that calls boxwright, without what launches it; placeholders are left out."""
    found = []
    for page, words in lines():
        if "boxwright" not in words:
            continue
        own = words[words.index("boxwright") + 1 :]
        if not any(word.isupper() or word == "..." for word in own):
            found.append((name_of(page), own))
    return found
