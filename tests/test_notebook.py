"""The notebook: run as it stands, it goes from a folder of images to a served champion."""

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs/notebook.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_no_outputs_are_checked_in() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(600)
# Jupyter's own: its client closes sockets late.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent), prepend=":")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(read(), timeout=None, resources=resources).execute()
    outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
    text = "".join(o.get("text", "") for o in outputs)
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4, text  # the data, the samples, the history, and samples over HTTP
    assert "photos@1 is champion" in text
    percentiles = [float(line.split()[-1]) for line in text.splitlines() if "percentile" in line]
    assert len(percentiles) == 3
    assert percentiles[2] < percentiles[0], "the critic tells noise from digits"
