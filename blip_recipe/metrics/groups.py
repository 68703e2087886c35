"""Name the scores of groups of images, such as the domains of NoCaps."""

from __future__ import annotations

import re
from collections.abc import Iterable

from blip_recipe.errors import RecipeError

MAX_GROUPS = 50
"""Maximum number of groups. A column with more values rather tells images apart than groups of them."""

LIKE_AN_END = re.compile(r"(^|_)(low|high|p_value)$")
"""Groups whose scores would have the name of an interval's end or of a p-value, such as `cider_low`."""


def name_groups(groups: Iterable[str], where: str) -> dict[str, str]:
    """Name the scores of groups: the group `"in-domain"` has `cider_in_domain`, and `"low"` has `cider_low_group`.

    Args:
        groups: The group of each image; an image with an empty text belongs to none.
        where: Name of the data set in error messages.

    Returns:
        The end of a score's name by group, in the order of the groups' names.

    Raises:
        RecipeError: There are too many groups, or the scores of two would have the same name.
    """
    found = sorted(set(groups) - {""})
    if len(found) > MAX_GROUPS:
        raise RecipeError(
            f"{where} has {len(found):,} groups of images, such as {found[0]!r:.50} and {found[1]!r:.50}: expected at "
            f"most {MAX_GROUPS}. Choose a column with fewer values as group_column."
        )
    names: dict[str, str] = {}
    for group in found:
        name = re.sub(r"\W+", "_", group.lower()).strip("_")
        if LIKE_AN_END.search(name):
            name += "_group"
        if not name or name in names:
            other = f"the score names of the group {names[name]!r:.50}" if name else "no letters or digits"
            raise RecipeError(
                f"{where} has the group of images {group!r:.50}, which has {other}: expected names that differ in "
                "letters or digits, as in cider_in_domain. Rename it in the data."
            )
        names[name] = group
    return {group: name for name, group in names.items()}
