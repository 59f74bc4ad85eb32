"""The study of weight clipping: each of the seven claims against it, measured from scratch.

`fits` and `trainings` compute; `claims` judges; `page` writes the report.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from models.durable import write_file
from models.errors import UserError
from models.outputs import sole_writer
from training.lab.jobs import run_jobs
from training.lab.study import fits, trainings
from training.lab.study.claims import Claim, judge_claims
from training.lab.study.page import TITLE, study_parts
from training.lab.study.settings import Scale, Values
from training.progress import silent
from training.reporting.pages import render

COMPUTE: dict[str, Callable[[Values], Values]] = {
    "surface": fits.fit_surface,
    "layers": trainings.train_deep,
    "grid": fits.fit_cell,
    "moments": fits.fit_moments,
    "run": trainings.train_whole,
}
"""The function of each part of the study; names of its jobs begin with the part."""


def study(
    out: Path, scale: Scale, *, processes: int = 1, say: Callable[[str], None] = silent
) -> list[Claim]:
    """Measure all, and write ``out/report.html``, ``out/study.md`` and its pictures.

    What is done already in ``out`` is not done again.

    Args:
        out: folder of everything.
        scale: `QUICK_SCALE`, which takes minutes, or `FULL_SCALE`, which takes a night. A folder
            holds one.
        processes: computations at once, one thread each.
        say: takes a line for people.

    Returns:
        The seven claims, each with its figures and verdict.

    Raises:
        UserError: ``out`` holds a study of another scale.
    """
    with sole_writer(out):
        note = out / "scale.json"
        mine = json.dumps(scale)
        if note.exists() and note.read_text() != mine:
            raise UserError(f"{out}: holds a study of another scale; choose another --out")
        write_file(note, mine)
        jobs = {
            **fits.surface_jobs(scale),
            **trainings.deep_jobs(scale),
            **fits.grid_jobs(scale),
            **fits.moment_jobs(scale),
            **trainings.whole_jobs(scale, out / "runs"),
        }
        computed = run_jobs(_compute, jobs, out / "answers", processes, say)
        answers = {
            part: {k: a for k, a in computed.items() if k.startswith(f"{part}-")}
            for part in COMPUTE
        }
        claims = judge_claims(answers)
        parts = study_parts(answers, claims, scale)
        write_file(out / "report.html", render("study.html.j2", title=TITLE, parts=parts))
        pictures = out / "pictures"
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir()
        text = "\n\n".join(part.markdown(pictures) for part in parts)
        write_file(out / "study.md", f"# {TITLE}\n\n{text}\n")
    return claims


def _compute(job: Values) -> Values:
    torch.set_num_threads(1)
    return COMPUTE[job["part"]](job)
