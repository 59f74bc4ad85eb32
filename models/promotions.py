"""The history of a model's champions, which tags of the registered model hold.

A change is a tag with a number. It is written before the alias moves, as pending, and again
afterwards. So whatever is cut off in between, the alias tells what happened; nothing else does.
A pending change that the alias does not show was cut off, or is about to happen in another process:
it is not told, and is deleted only when it is older than a promotion can be.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

HISTORY = "promotion."
"""Prefix of the tags. A number and random digits follow: two simultaneous changes may take the same
number, but none overwrites the other."""
PENDING = "pending"
LONGEST = timedelta(hours=1)
"""More than a promotion takes, with a registry that answers late and clocks that differ."""
MOVED = "moved"
"""The action of a change that was made elsewhere, such as by hand in MLflow's pages."""
Change = dict[str, str | None]
"""One change: action, who, when, why, from, to. The versions are None where there is no champion.
"""


def user() -> str:
    """The user's name; of one that has none, as in containers, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return f"uid {os.getuid()}"


def now(shift: timedelta = timedelta()) -> str:
    """The time of a change, which sorts as text; or a time before or after it."""
    return (datetime.now(UTC) + shift).isoformat(timespec="milliseconds")


def tag_of(change: Change, tags: Mapping[str, str]) -> str:
    """The name of a change's tag: a new one, unless the last that was begun is the same change."""
    recorded = _recorded(tags)
    if recorded:
        name, last = recorded[-1]
        if PENDING in last and all(
            last.get(key) == change[key] for key in ("action", "from", "to")
        ):
            return name
    return next_tag(tags)


def next_tag(tags: Mapping[str, str]) -> str:
    """The name of a new change's tag."""
    last = max((_number(name) for name, _ in _recorded(tags)), default=0)
    return f"{HISTORY}{last + 1:06d}.{secrets.token_hex(4)}"


def settle(
    tags: Mapping[str, str], champion: str | None
) -> tuple[list[Change], dict[str, str | None]]:
    """Tell what happened, by the tags and by where the alias is now.

    Args:
        tags: of the registered model. Those of others, such as ``promotion.note``, are no changes.
        champion: the version that the alias names; None if there is no alias.

    Returns:
        The changes, oldest first; and the tags, by name, that bring the record up to that: None
        where one is to be deleted.
    """
    changes: list[Change] = []
    mend: dict[str, str | None] = {}
    for name, change in reversed(_recorded(tags)):
        if change.pop(PENDING, False):
            if changes or change["to"] != champion:
                if str(change["when"]) < now(-LONGEST):
                    mend[name] = None
                continue
            mend[name] = json.dumps(change)
        changes.append(change)
    changes.reverse()
    last = changes[-1]["to"] if changes else None
    if last != champion:
        moved: Change = {
            "action": MOVED,
            "who": None,
            "when": now(),
            "why": "found so: the alias was set or deleted by other means",
            "from": last,
            "to": champion,
        }
        changes.append(moved)
        mend[next_tag(tags)] = json.dumps(moved)
    return changes, mend


def champions(changes: list[Change]) -> list[str]:
    """The champions that a rollback goes back through, oldest first, the last one at the end."""
    found: list[str] = []
    for change in changes:
        to = change["to"]
        if change["action"] == "rollback" and to in found:
            while found[-1] != to:
                found.pop()
        elif to is not None and found[-1:] != [to]:
            found.append(to)
    return found


def _recorded(tags: Mapping[str, str]) -> list[tuple[str, Change]]:
    """The changes that the tags hold, with the tags' names, oldest first."""
    found = []
    for name, value in tags.items():
        if not re.fullmatch(rf"{re.escape(HISTORY)}\d+\.[0-9a-f]+", name):
            continue
        try:
            change = json.loads(value)
        except ValueError:
            continue
        if isinstance(change, dict) and {"action", "when", "to"} <= change.keys():
            found.append((name, change))
    return sorted(found, key=lambda item: (_number(item[0]), str(item[1]["when"])))


def _number(name: str) -> int:
    return int(name.split(".")[1])
