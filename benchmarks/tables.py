"""Tables: real rows, ours, CTGAN, TVAE and a Gaussian copula, at defaults and at equal time.

    python -m benchmarks.tables --peers VENV/bin/python --ydata VENV2/bin/python --answers FOLDER

``VENV`` holds the peers (see `benchmarks.tables_peers`), apart from our own packages, and ``VENV2``
ydata's WGAN-GP (see `benchmarks.tables_ydata`), which needs older packages than the others. Each
answer is saved as soon as it is there, and is not asked for again: a run that was interrupted goes
on. The last step writes ``benchmarks/results/tables.json`` and the tables of ``docs/tables.md``.

At equal time a peer begins no epoch after the CPU seconds of our run with the same seed.

Times are CPU seconds. Ours are those of the whole commands ``wgan train``, judging included, and
``wgan sample``; a peer's are those of its calls of ``fit`` and ``sample``, without its imports. Of
several seeds the page shows the least: other work on the machine only adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.markdown import mean_and_range, put_between, table
from benchmarks.tables_peers import TABLES

Answer = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "tables.json"
PAGE = Path(__file__).parents[1] / "docs" / "tables.md"
PEERS = Path(__file__).with_name("tables_peers.py")
YDATA = Path(__file__).with_name("tables_ydata.py")
METHODS = {
    "real": "real rows",
    "ours": "ours",
    "ctgan": "CTGAN",
    "ctgan_equal": "CTGAN, equal time",
    "tvae": "TVAE",
    "tvae_equal": "TVAE, equal time",
    "ydata": "ydata's WGAN-GP",
    "ydata_equal": "ydata's WGAN-GP, equal time",
    "copula": "Gaussian copula",
}
BEGIN, END = "<!-- made by benchmarks.tables -->", "<!-- end -->"
HELD_OUT = "0.05"
"""Share of the training rows that our run judges itself on; the peers train on all of them."""


def jobs(seeds: int) -> list[tuple[str, str, int]]:
    """Table, method and seed of each answer, in the order in which they are asked for."""
    once_only = [(name, method, 0) for name in TABLES for method in ("real", "copula")]
    trained = [method for method in METHODS if method not in ("real", "copula")]
    return once_only + [
        (name, method, seed) for seed in range(seeds) for name in TABLES for method in trained
    ]


class Bench:
    """Asks for one answer after the other."""

    def __init__(self, peers: Path, ydata: Path, folder: Path) -> None:
        self.peers, self.ydata, self.folder = peers, ydata, folder

    def peer(self, *arguments: object) -> Answer:
        """What `benchmarks.tables_peers` answers."""
        return asked(self.peers, PEERS, *arguments)

    def answer(self, name: str, method: str, seed: int) -> None:
        """Make rows and judge them, unless that was done before."""
        folder = self.folder / name
        judged = folder / f"{method}-{seed}.json"
        if judged.exists():
            return
        if not (folder / "table.json").exists():
            self.peer("data", name, folder)
        rows = folder / ("train.csv" if method == "real" else f"{method}-{seed}.csv")

        if method == "real":
            made: Answer = {}
        elif method == "ours":
            made = once(rows.with_suffix(".seconds"), lambda: ours(folder, rows, seed))
        else:
            peer, _, is_equal = method.partition("_")
            fit = [folder, rows, seed]
            if is_equal:
                mine = json.loads((folder / f"ours-{seed}.seconds").read_text())
                fit.append(mine["seconds"])
            made = once(
                rows.with_suffix(".seconds"),
                lambda: (
                    asked(self.ydata, YDATA, *fit)
                    if peer == "ydata"
                    else self.peer("fit", peer, *fit)
                ),
            )
        about = {"table": name, "method": method, "seed": seed}
        once(judged, lambda: {**about, **made, **self.peer("judge", folder, rows)})


def asked(python: Path, script: Path, *arguments: object) -> Answer:
    """What a script answers, in an environment of its own."""
    command = [str(python), str(script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


def once(path: Path, find: Callable[[], Answer]) -> Answer:
    """What was found before, or is found now and saved."""
    if not path.exists():
        found = find()
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(path, json.dumps(found), flush=True)
    saved: Answer = json.loads(path.read_text())
    return saved


def ours(folder: Path, made: Path, seed: int) -> Answer:
    """Train and sample with our commands."""
    run = made.with_suffix("")
    train = folder / "train.csv"
    options = [f"data.heldout_fraction={HELD_OUT}", f"training.seed={seed}"]
    settings = [part for option in options for part in ("--set", option)]
    command = ["train", "--preset", "table", "--data", train, "--no-register", "--out", run]
    seconds = cpu_seconds(*command, *settings)
    count = sum(1 for _ in train.open()) - 1
    sampling = cpu_seconds("sample", run / "artifact", "-n", count, "--seed", seed, "--out", made)
    return {"seconds": seconds, "sampling_seconds": sampling}


def cpu_seconds(*arguments: object) -> float:
    """CPU seconds of a command of ours."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    command = [sys.executable, "-m", "wgan_cli", *map(str, arguments)]
    subprocess.run(
        command, check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return used() - before


def results(folder: Path) -> dict[str, Any]:
    """All answers that there are, with what was asked and where."""
    answers = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*-*.json"))]
    tables = {name: json.loads((folder / name / "table.json").read_text()) for name in TABLES}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, others at work on them",
        "heldout_fraction": HELD_OUT,
        "tables": tables,
        "answers": answers,
    }


def shown(found: dict[str, Any]) -> str:
    """The tables of the page."""
    parts = []
    for name, about in found["tables"].items():
        rows = []
        for method, title in METHODS.items():
            mine = [a for a in found["answers"] if (a["table"], a["method"]) == (name, method)]
            if mine:
                rows.append([title, str(len(mine)), *(cell(mine, *column) for column in COLUMNS)])
        size = "{train:,} + {test:,} rows, {columns} columns".format(**about)
        head = [f"`{name}`", "seeds", *(title for _, title, _ in COLUMNS)]
        parts.append(f"{size}; TSTR predicts `{about['target']}`.\n\n{table(head, rows)}")
    return "\n".join(parts)


COLUMNS = (
    ("seconds", "CPU s", "{:.3g}"),
    ("sampling_seconds", "sampling", "{:.2g}"),
    ("shapes", "Shapes", "{:.3f}"),
    ("trends", "Trends", "{:.3f}"),
    ("tstr", "TSTR", "{:.3f}"),
    ("closer", "DCR", "{:.2f}"),
    ("copies", "copies", "{:.2%}"),
    ("invalid", "invalid", "{:.2%}"),
)
"""Each figure, its title and its form."""


def cell(answers: list[Answer], figure: str, _: str, form: str) -> str:
    """The mean over seeds, of several with the lowest and the highest; of seconds the least."""
    values = [answer[figure] for answer in answers if figure in answer]
    if not values:
        return ""
    return mean_and_range([min(values)] if "seconds" in figure else values, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="Python of the peers' venv")
    parser.add_argument("--ydata", type=Path, required=True, help="Python of ydata's venv")
    parser.add_argument("--answers", type=Path, required=True, help="folder")
    parser.add_argument("--seeds", type=int, default=3, help="of each method")
    parser.add_argument("--only", choices=METHODS, nargs="*", default=list(METHODS))
    arguments = parser.parse_args()
    bench = Bench(arguments.peers, arguments.ydata, arguments.answers)
    for name, method, seed in jobs(arguments.seeds):
        if method in arguments.only:
            bench.answer(name, method, seed)
    found = results(arguments.answers)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(found))


if __name__ == "__main__":
    main()
