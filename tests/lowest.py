"""``python tests/lowest.py``: constraints for pip that pin each direct dependency to the lowest version.

That is the one that setup.py has for it; ``make check LOWEST=yes`` installs it. Of the standard library alone, as
it runs before anything is installed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
#: A requirement as setup.py writes it: name, bound, and whatever else follows a comma or semicolon.
_REQUIREMENT = re.compile(r"([A-Za-z0-9.-]+)(?:>=|==|~=)([0-9][0-9a-z.]*)(;.*)?")


def declared() -> dict[str, list[str]]:
    """Requirements by who has them: an extra, or ``""`` for everybody."""
    call = next(node.value for node in ast.parse(SETUP.read_text()).body
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    words = {word.arg: word.value for word in call.keywords}
    extras: dict[str, list[str]] = ast.literal_eval(words["extras_require"])
    return {"": ast.literal_eval(words["install_requires"]), **extras}


def constraints() -> list[str]:
    """One line a dependency. Raises :class:`ValueError` for a requirement without a lower bound, or with two."""
    lowest: dict[str, str] = {}
    for requirement in (requirement for group in declared().values() for requirement in group):
        found = _REQUIREMENT.fullmatch(requirement.replace(" ", ""))
        if found is None:
            raise ValueError(f"setup.py: {requirement!r} has no lower bound; write NAME>=VERSION")
        name, version, _marker = found.groups()
        line = f"{name}=={version}"
        if lowest.setdefault(name.lower(), line) != line:
            raise ValueError(f"setup.py: {requirement!r} and {lowest[name.lower()]!r}: two bounds of one package")
    return sorted(lowest.values(), key=str.lower)


if __name__ == "__main__":
    print("\n".join(constraints()))
