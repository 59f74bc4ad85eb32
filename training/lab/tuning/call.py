"""One call of a search, with the time that it has had; a call that was stopped goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path

from models.durable import read_file, write_file

UNFINISHED = "unfinished.json"
"""What a call notes until its end: the seconds that it has had, and the winner that it trains."""
SECONDS_BETWEEN_NOTES = 10
REMEDY = "remove it, and the search begins another round"


class Call:
    """The time of one call of `tune`, and the winner once it is chosen."""

    def __init__(self, out: Path, budget_seconds: float) -> None:
        """Begin, or go on with a call that did not come to its end.

        Raises:
            BrokenFileError: what that one noted cannot be read.
        """
        self.out, self.path, self.winner = out, out / UNFINISHED, None
        self.started = self.noted = time.time()
        self.is_ended = False
        if self.path.exists():
            noted = read_file(self.path, json.loads, REMEDY)
            self.started -= noted["seconds"]
            self.winner = noted["winner"]
        self.over = self.started + budget_seconds

    def note(self, winner: int | None = None) -> None:
        """Note the time until now, and the winner if it is chosen."""
        self.winner = self.winner if winner is None else winner
        self.noted = time.time()
        noted = {"seconds": self.noted - self.started, "winner": self.winner}
        write_file(self.path, json.dumps(noted) + "\n")

    def note_sometimes(self) -> None:
        """Note the time until now, if the last note is old: a process that is killed notes none."""
        if time.time() - self.noted > SECONDS_BETWEEN_NOTES:
            self.note()

    def note_unless_ended(self) -> None:
        """Note the time until now, unless the call came to its end."""
        if not self.is_ended:
            self.note()

    def drop_winner(self) -> None:
        """Note the time until now, and that another winner is to be chosen."""
        self.winner = None
        self.note()

    def end(self) -> None:
        """Let the same command begin another round."""
        self.is_ended = True
        self.path.unlink(missing_ok=True)
