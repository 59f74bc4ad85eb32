"""Many independent computations, over processes; what is done already is not done again."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from models.durable import read_file, write_file
from training.progress import silent, track

REMEDY = "remove it, and it is computed anew"


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Mapping[str, Any],
    folder: Path,
    processes: int = 1,
    say: Callable[[str], None] = silent,
) -> dict[str, Any]:
    """Compute each job that has no answer yet, and keep its answer.

    Args:
        function: takes a job and returns something that JSON holds; it belongs to a module, so
            that another process can import it.
        jobs: by a name that a file may have. A job of the same name is the same job.
        folder: for the answers, a JSON file each.
        processes: how many at once, one thread each; 1: in this process.
        say: takes a line when a job is done.

    Returns:
        The answers by name, in the jobs' order.

    Raises:
        Exception: what a job raised; answers that were there before are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.json" for name in jobs}
    todo = {name: job for name, job in jobs.items() if not paths[name].exists()}
    done = len(jobs) - len(todo)

    def keep(name: str, answer: Any) -> None:
        nonlocal done
        write_file(paths[name], json.dumps(answer))
        done += 1
        say(f"{done}/{len(jobs)} {name}")

    if processes == 1:
        for name, job in track(todo.items(), folder.name, len(todo)):
            keep(name, function(job))
    elif todo:
        context = multiprocessing.get_context("spawn")  # a fork of torch's threads may hang
        with ProcessPoolExecutor(min(processes, len(todo)), context, begin_process) as pool:
            running = {pool.submit(function, job): name for name, job in todo.items()}
            try:
                for future in track(as_completed(running), folder.name, len(running)):
                    keep(running[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return {name: read_file(path, json.loads, REMEDY) for name, path in paths.items()}


def begin_process() -> None:
    """Begin a process among several: one thread, and an end at the first Ctrl-C."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # this process ends; the first one tells why
