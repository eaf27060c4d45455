"""The map of the modules in CONTRIBUTING.md: checked by `make lint`, written by `make pages`.

A line is the first sentence of a module's docstring, so the map is as true as the docstrings.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "CONTRIBUTING.md"
BEGIN, END = "<!-- map: written by `make pages` -->\n", "<!-- end of map -->\n"


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0]


def rooms() -> list[Path]:
    """Return the packages, each before those inside it."""
    return sorted(
        path.parent
        for top in ("cpprune", "shards")
        for path in (REPOSITORY / top).rglob("__init__.py")
    )


def room_map() -> str:
    """Return a list per package: its modules and what each is."""
    sections = []
    for room in rooms():
        name = room.relative_to(REPOSITORY).as_posix()
        lines = [f"#### `{name}/`", "", first_line(room / "__init__.py"), ""]
        modules = sorted(path for path in room.glob("*.py") if path.name != "__init__.py")
        lines += [f"- `{path.name}`: {first_line(path)}" for path in modules]
        sections.append("\n".join(lines).rstrip("\n") + "\n")
    return "\n".join(sections)


def with_map(page: str) -> str:
    """Return the page with the map as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{room_map()}\n{END}{after}"


if __name__ == "__main__":
    found = PAGE.read_text()
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_map(found))
    elif found != with_map(found):
        sys.exit(f"{PAGE.name}: its map is not that of the modules as they are; run make pages")
