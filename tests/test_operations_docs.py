"""docs/operations.md and the comments of values.yaml, against what they speak of."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import tools, verify
from tests.command_line import parsed
from training.retraining.config import RetrainConfig, read_config
from training.retraining.gates import GatesConfig
from training.retraining.outcomes import OUTCOME_KINDS

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy/chart"
DOCS = (ROOT / "docs/operations.md").read_text()
VALUES = (CHART / "values.yaml").read_text()
HELM = tools.find("helm")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def commands() -> list[str]:
    """The lines of every shell block, and every inline code that is a command of ours."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:make|python|wgan|kubectl|helm) [^`]+)`", DOCS)
    return [line for line in [*lines, *inline] if line]


def test_the_file_of_the_docs_is_one(tmp_path: Path) -> None:
    (example,) = [block for block in blocks("yaml") if block.startswith("preset:")]
    (tmp_path / "retrain.yaml").write_text(example)
    settings = read_config(tmp_path / "retrain.yaml")
    assert settings.build().training.steps == 2500
    unsaid = RetrainConfig.model_fields.keys() - set(re.findall(r"^(\w+):", example, re.MULTILINE))
    for key in unsaid:
        assert re.search(rf"`{key}\b", DOCS), key


def test_every_gate_is_told_with_its_default() -> None:
    told = DOCS[DOCS.index("### Gates") : DOCS.index("### What can go wrong meanwhile")]
    for name, field in GatesConfig.model_fields.items():
        assert re.search(rf"`(?:gates\.)?{name}`", told), name
        default = field.default
        if name in ("precision", "recall", "coverage"):
            assert f"({default} each)" in told
        elif isinstance(default, int | float):
            shown = f"{default:.0%}" if name == "max_near_training" else f"{default:g}"
            assert f"`{name}` ({shown})" in told, name


def test_outcomes_and_what_is_pushed_are_told() -> None:
    told = DOCS[DOCS.index("### What is pushed") : DOCS.index("## Monitoring")]
    source = (ROOT / "training/retraining/outcomes.py").read_text()
    pushed = {f"wgan_retrain_{key}" for key in re.findall(r'gauge\("(\w+)"', source)}
    assert set(re.findall(r"wgan_retrain_\w+", told)) == pushed
    for kind in OUTCOME_KINDS:
        assert kind in told


def test_settings_that_are_named_exist() -> None:
    values = yaml.safe_load(VALUES)
    named = set(re.findall(rf"`((?:{'|'.join(values)})\.[\w.]+)", DOCS))
    assert len(named) > 10
    for path in named:
        node: Any = values
        for part in path.split("."):
            assert part in node, path
            node = node[part]


@pytest.mark.skipif(HELM is None, reason="no helm: run `make tools`")
def test_the_values_in_the_docs_are_taken(tmp_path: Path) -> None:
    made = set()
    for values in (block for block in blocks("yaml") if not block.startswith("preset:")):
        (tmp_path / "values.yaml").write_text(values)
        file = str(tmp_path / "values.yaml")
        command = [str(HELM), "template", "wgan", str(CHART), "--values", file]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        made |= {d["kind"] for d in yaml.safe_load_all(done.stdout) if d}
    assert {"Ingress", "HTTPRoute"} <= made


@pytest.mark.skipif(HELM is None, reason="no helm: run `make tools`")
def test_what_kubectl_is_to_look_at_is_made() -> None:
    """The release is called wgan, as the docs say; its values are those for a laptop."""
    install = next(line for line in commands() if line.startswith("helm install"))
    arguments = install.replace("helm install", "template").replace("--create-namespace", "")
    text, full = (
        subprocess.run(
            [str(HELM), *arguments.split(), *more],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout
        for more in ([], ["--set", "serve.autoscaling.enabled=true"])
    )  # fmt: skip
    documents = [d for d in yaml.safe_load_all(text + full) if d]
    made = {(d["kind"].lower(), d["metadata"]["name"]) for d in documents}
    labels = {d["metadata"]["labels"]["app.kubernetes.io/component"] for d in documents}
    kinds = {"hpa": "horizontalpodautoscaler"}
    made_by_hand = {("job", "first-retraining"), ("job", "...")}
    found = set()
    for line in (line for line in commands() if line.startswith("kubectl")):
        for kind, name in re.findall(
            r"\b(deployment|service|cronjob|job|hpa)[/ ](wgan[\w-]*|first-\w+|\.\.\.)", line
        ):
            found.add((kinds.get(kind, kind), name))
        for component in re.findall(r"component=(\w+)", line):
            assert component in labels, line
    assert len(found) > 4
    assert found <= made | made_by_hand, found - made


def test_commands_that_run_here_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    sections = {section.__name__ for section in verify.SECTIONS}
    kinds = set()
    for line in commands():
        program, *words = line.split()
        kinds.add(program)
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), line
        elif program == "python" and words[0] == "-m":
            assert (ROOT / (words[1].replace(".", "/") + ".py")).exists(), line
        elif program == "wgan" and words[1:]:  # without, it is the command's name
            parsed(words)
        elif program == "python":
            assert words[0] == "deploy/verify.py", line
            assert set(words[1:]) <= sections, line
    assert {"make", "python", "wgan", "kubectl", "helm", "docker"} <= kinds
    summary = re.findall(r"^(\w+) +(?:ran|skipped|FAILED) +\d+ s  ", DOCS, re.MULTILINE)
    assert summary == [section.__name__ for section in verify.SECTIONS]


def test_every_value_is_commented() -> None:
    """In values.yaml the line above each key is a comment, but that of a section's own name."""
    for file in CHART.glob("values*.yaml"):
        assert file.read_text().startswith("# "), file.name
    lines = VALUES.splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"(?:  )?\w", line)]
    assert len(keys) > 60
    bare = [lines[i] for i in keys if not lines[i - 1].lstrip().startswith("#")]
    assert not [line for line in bare if not re.fullmatch(r"\w+:", line)]
