"""Differentially private training: what a row can change, what it costs, what is published."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch import Tensor, nn

from benchmarks.privacy import PAGE, RESULTS, gradient_bound, shown
from models import registry
from models.artifact import load_artifact
from models.config import Config
from models.constraints import (
    Constraint,
    GradientNormalization,
    LipschitzPenalty,
    NoConstraint,
    SpectralNorm,
    ZeroCenteredPenalty,
)
from models.errors import BrokenFileError, ConfigError
from models.model import Model
from models.networks import CriticConfig, build_critic
from models.record import Run, without_leaks
from models.tables import Choice, Value
from tests.artifacts import tiny_config
from tests.conformance import FAMILIES, data, make
from tests.mixed import people
from tests.registries import new_database
from tests.runs import trained
from tests.test_app import made, talk
from tests.test_conformance import CONSTRAINTS
from tests.test_step import difference, gradients
from training.data.dataset import Dataset, load_data
from training.engine import privacy
from training.engine.accounting import PRECISION, epsilon_spent, noise_for, privacy_card
from training.engine.checkpoint import CheckpointError, newest_checkpoint
from training.engine.loop import train
from training.engine.optimisers import OPTIMIZERS
from training.engine.privacy import SECRET, PrivateStep, Secret, keep_secret, poisson_batches
from training.engine.runs import Interrupted
from training.engine.step import CriticStep, critic_loss
from training.engine.workers import Workers
from training.tracking import track_and_register

pytestmark = pytest.mark.usefixtures("charts_undrawn")
CPU = torch.device("cpu")
KEY = b"a key of tests, of 32 bytes....."
ROUNDING = 1e-7
"""Relative error of a gradient in float64: scores pass through float32."""
WITHOUT_DRAWS: list[Constraint] = [
    NoConstraint(),
    SpectralNorm(),
    GradientNormalization(),
    ZeroCenteredPenalty(where="real"),
    LipschitzPenalty(where="both", strength=30),
]
"""Their terms need no random numbers, so that a row has the same ones among any others."""
MIXING = {"max_gradient_penalty", "dragan", "gradient_penalty, around real"}


def step_of(
    critic: nn.Module,
    constraint: Constraint,
    clip: float = math.inf,
    noise: float = 0,
    size: int = 1,
) -> PrivateStep:
    return PrivateStep(critic, constraint, clip, noise, size, Secret(KEY))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


# ---- one step -----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "network"),
    [*((name, "mlp") for name in CONSTRAINTS), ("gradient_penalty", "mlp, equalized")],
)
def test_without_clipping_and_noise_a_private_step_is_the_ordinary_one(
    name: str, network: str
) -> None:
    constraint, family = CONSTRAINTS[name], FAMILIES[network]
    critic = make(constraint, family).train()
    real, fake = (x.double() for x in data(family))
    for step in (0, 1) if name.endswith("lazy") else (0,):  # with and without its penalty
        found = []
        # Infinity times zero is no number.
        private = step_of(critic, constraint, 1e12, size=len(real))
        for each in (private, CriticStep("eager", critic, constraint)):
            torch.manual_seed(0)
            gap, loss = each(real, fake, [], step)
            found.append((gap.float(), loss.float(), gradients(critic)))
        error = difference(found[0][2], found[1][2])
        if name in MIXING:
            assert constraint.mixes_samples()
            assert error > 1e-3
        else:
            assert constraint.mixes_samples() is None
            assert error <= ROUNDING
            torch.testing.assert_close(found[0][:2], found[1][:2])


@pytest.mark.parametrize("constraint", WITHOUT_DRAWS, ids=lambda c: c.kind)
def test_gradients_by_row_are_those_of_one_row_at_a_time(constraint: Constraint) -> None:
    critic = make(constraint, FAMILIES["mlp"]).train()
    real, fake = (x.double() for x in data(FAMILIES["mlp"]))
    _, loss, found = step_of(critic, constraint).by_row(real, fake, [], 0)
    for i in range(len(real)):
        _, alone = critic_loss(critic, constraint, real[i : i + 1], fake[i : i + 1], 0, True)
        expected = torch.autograd.grad(alone, list(critic.parameters()), allow_unused=True)
        own = [torch.zeros_like(p) if g is None else g
               for p, g in zip(critic.parameters(), expected, strict=True)]  # fmt: skip
        assert difference([g[i] for g in found], own) <= ROUNDING
        torch.testing.assert_close(loss[i].double(), alone.detach().double())


def test_each_row_has_its_own_conditions() -> None:
    parts = [Value(), Choice(2), Value(), Choice(3)]
    torch.manual_seed(0)
    config = CriticConfig(architecture="mlp", width=8, depth=2)
    critic = build_critic(config, (7,), parts=parts).double()
    real, fake = torch.randn(2, 5, 7, dtype=torch.float64)
    conditions = torch.rand(5, critic.restriction_width, dtype=torch.float64)
    gap, _, found = step_of(critic, NoConstraint()).by_row(real, fake, [conditions], 0)
    for i in range(5):
        own = conditions[i : i + 1]
        alone = (critic(real[i : i + 1], own) - critic(fake[i : i + 1], own)).sum()
        torch.testing.assert_close(gap[i].double(), alone.detach())
        expected = torch.autograd.grad(-alone, list(critic.parameters()), allow_unused=True)
        known = [(g[i], e) for g, e in zip(found, expected, strict=True) if e is not None]
        assert difference([g for g, _ in known], [e for _, e in known]) <= ROUNDING
        assert all(not g[i].any() for g, e in zip(found, expected, strict=True) if e is None)


@pytest.mark.sampled
@pytest.mark.parametrize("constraint", WITHOUT_DRAWS, ids=lambda c: c.kind)
@pytest.mark.parametrize("clip", [0.01, 1.0])
def test_one_row_more_changes_the_sum_by_the_clip_norm_at_most(
    constraint: Constraint, clip: float
) -> None:
    critic = make(constraint, FAMILIES["mlp"]).train()
    real, fake = (x.double() for x in data(FAMILIES["mlp"]))
    real[0] *= 1e3  # an outlier
    *_, whole = step_of(critic, constraint, clip).clipped_sum(real, fake, [], 0)
    assert flat(whole).norm() <= clip * len(real) * (1 + ROUNDING)
    changes = []
    for i in range(len(real)):
        others = torch.arange(len(real)) != i
        *_, rest = step_of(critic, constraint, clip).clipped_sum(real[others], fake[others], [], 0)
        changes.append((flat(whole) - flat(rest)).norm().item())
    assert max(changes) <= clip * (1 + ROUNDING)
    assert max(changes) >= 0.5 * clip, "the bound is reached, so the test would see a wider one"


def test_rows_in_parts_have_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of as many rows as their gradients have room for, and one at least."""
    critic = make(NoConstraint(), FAMILIES["mlp"]).train()
    real, fake = (x.double() for x in data(FAMILIES["mlp"], n=7))
    step = step_of(critic, NoConstraint(), 0.1)
    gap, loss, whole = step.clipped_sum(real, fake, [], 0)
    by_row, sizes = step.by_row, list[int]()

    def noted(rows: Tensor, *more: Any) -> Any:
        sizes.append(len(rows))
        return by_row(rows, *more)

    monkeypatch.setattr(step, "by_row", noted)
    assert privacy.MAX_NUMBERS * 4 == 64 * 2**20, "64 MiB of float32"
    row = sum(p.numel() for p in critic.parameters())
    for most, expected in ((1, [1] * 7), (3 * row, [3, 3, 1]), (8 * row - 1, [7])):
        sizes.clear()
        monkeypatch.setattr(privacy, "MAX_NUMBERS", most)
        *means, parts = step.clipped_sum(real, fake, [], 0)
        torch.testing.assert_close(flat(parts), flat(whole))
        torch.testing.assert_close(means, [gap, loss])
        assert sizes == expected
    alone = step.clipped_sum(real[:1], fake[:1], [], 0)[0]
    torch.testing.assert_close(alone, (critic(real[:1]) - critic(fake[:1])).mean(),
                               check_dtype=False)  # fmt: skip
    nothing = step.clipped_sum(real[:0], fake[:0], [], 0)
    assert [x.abs().sum().item() for x in (*nothing[:2], *nothing[2])] == [0] * (2 + len(whole))


def test_noise_has_the_deviation_that_is_accounted_for_and_comes_from_the_secret() -> None:
    critic = nn.Sequential(nn.Linear(100, 200), nn.Flatten(0))
    nothing = torch.empty(0, 100)

    def noised(key: bytes, step: int) -> Tensor:
        PrivateStep(critic, NoConstraint(), 0.5, 3.0, 64, Secret(key))(nothing, nothing, [], step)
        return flat(gradients(critic))

    drawn = noised(KEY, 7)
    assert stats.kstest(drawn.numpy(), stats.norm(scale=3.0 * 0.5 / 64).cdf).pvalue > 0.01
    assert torch.equal(drawn, noised(KEY, 7)), "a step that is done again has the same noise"
    for other in (noised(KEY, 8), noised(b"another", 7)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03  # of 20,200 numbers: 4 deviations


def test_a_row_moves_the_noised_gradient_by_no_more_than_accounted_for() -> None:
    """An attacker who knows all but one row, and the row, looks along the row's own gradient."""
    critic = make(NoConstraint(), FAMILIES["mlp"]).train()
    real, fake = (x.double() for x in data(FAMILIES["mlp"]))
    real[0] *= 1e3
    noise, clip, draws = 2.0, 0.5, 400
    *_, own = step_of(critic, NoConstraint(), clip).clipped_sum(real[:1], fake[:1], [], 0)
    along = flat(own) / flat(own).norm()
    seen = []
    for rows in (slice(0, None), slice(1, None)):
        step = step_of(critic, NoConstraint(), clip, noise)
        readings = []
        for number in range(draws):
            step(real[rows], fake[rows], [], number + draws * len(seen))
            readings.append(float(flat(gradients(critic)) @ along))
        seen.append(np.array(readings))
    deviation = np.sqrt((seen[0].var() + seen[1].var()) / 2)
    moved = (seen[0].mean() - seen[1].mean()) / deviation
    assert abs(moved - 1 / noise) < 4 * math.sqrt(2 / draws)


def test_hooks_of_a_constraint_see_the_noised_gradient() -> None:
    """Weight decay adds its term in a hook, which knows nothing of the rows."""
    constraint = CONSTRAINTS["weight_decay"]
    critic = make(constraint, FAMILIES["mlp"]).train()
    nothing = torch.empty(0, *FAMILIES["mlp"].shape, dtype=torch.float64)
    step_of(critic, constraint, 1.0)(nothing, nothing, [], 0)
    weights = [p for name, p in critic.named_parameters() if name.endswith("weight")]
    for weight in weights:
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, constraint.strength * weight.detach())  # type: ignore[union-attr]


def test_a_critic_that_cannot_be_taken_row_by_row_is_refused() -> None:
    critic = make(NoConstraint(), FAMILIES["dcgan"]).train()
    real, fake = (x.double() for x in data(FAMILIES["dcgan"]))
    reason = r"NoConstraint cannot be found row by row \([^ )][^\n]*\); use another constraint"
    with pytest.raises(ConfigError, match=reason):
        step_of(critic, NoConstraint(), 1.0)(real, fake, [], 0)


def test_the_bound_that_weight_clipping_gives_holds() -> None:
    parts = [Value(), Choice(2), Value(), Choice(3)]
    config = CriticConfig(architecture="mlp", width=8, depth=2)
    critic = build_critic(config, (7,), parts=parts)
    bound = gradient_bound(critic, parts, 0.1)
    step = step_of(critic, NoConstraint())
    rows = torch.tensor([[3.5, 1, 0, 3.5, 1, 0, 0], [-3.5, 0, 1, -3.5, 0, 0, 1]])
    free = [torch.zeros(1, critic.restriction_width)]
    torch.manual_seed(0)
    longest = 0.0
    for corner in range(50):
        with torch.no_grad():
            for weight in critic.parameters():
                signs = torch.randint(2, weight.shape) * 2.0 - 1 if corner else 1.0
                weight.copy_(torch.full_like(weight, 0.1) * signs)
        *_, found = step.by_row(rows[:1], rows[1:], free, 0)
        longest = max(longest, flat(found).norm().item())
    assert 0.3 * bound < longest < bound


def test_the_page_has_the_tables_of_the_results() -> None:
    page = PAGE.read_text()
    assert shown(json.loads(RESULTS.read_text())) in page


# ---- which rows ---------------------------------------------------------------------------------


def test_each_row_is_in_a_batch_with_the_same_probability_and_by_itself() -> None:
    count, size, steps = 50, 10, 4000
    order = poisson_batches(Secret(KEY), count, size, 0)
    batches = [next(order) for _ in range(steps)]
    assert all(len(set(batch)) == len(batch) for batch in batches)
    member = np.zeros((steps, count))
    for row, batch in zip(member, batches, strict=True):
        row[batch] = 1
    q = size / count
    z = (member.mean(0) - q) / math.sqrt(q * (1 - q) / steps)
    assert stats.kstest(z, "norm").pvalue > 0.01
    # Independent rows: the number of rows is binomial, and no pair is correlated.
    observed = np.bincount(member.sum(1).astype(int), minlength=count + 1)[4:17]
    expected = steps * stats.binom(count, q).pmf(np.arange(4, 17))
    rest = steps - np.array([observed.sum(), expected.sum()])
    chi2 = stats.chisquare([*observed, rest[0]], [*expected, rest[1]])
    assert chi2.pvalue > 0.01
    pairs = np.corrcoef(member.T)[np.triu_indices(count, 1)] * math.sqrt(steps)
    assert stats.kstest(pairs, "norm").pvalue > 0.01


def test_a_resumed_run_samples_the_rows_of_an_uninterrupted_one() -> None:
    whole = poisson_batches(Secret(KEY), 100, 20, 0)
    skipped = [next(whole) for _ in range(5)]
    again = poisson_batches(Secret(KEY), 100, 20, 5)
    for _ in range(3):
        np.testing.assert_array_equal(next(whole), next(again))
    other = next(poisson_batches(Secret(b"another"), 100, 20, 0))
    assert sorted(other) != sorted(skipped[0])


def test_a_secret_is_its_owner_s_alone_and_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(CheckpointError, match="secret: is missing"):
        keep_secret(folder, is_new=False)
    first = keep_secret(folder, is_new=True)
    path = folder / SECRET
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(path.read_text())) == 32
    assert [keep_secret(folder, is_new=new).seed for new in (True, False)] == [first.seed] * 2
    # Killed before it was whole: nobody has used the key, and the next attempt makes another.
    path.rename(path.with_suffix(".partial"))
    assert keep_secret(folder, is_new=True).seed != first.seed
    assert [file.name for file in folder.iterdir()] == [SECRET]
    path.write_text(KEY.hex())
    assert keep_secret(folder, is_new=False).seed == Secret(KEY).seed
    path.write_text(KEY.hex()[2:])
    with pytest.raises(BrokenFileError):
        keep_secret(folder, is_new=False)


# ---- accounting ---------------------------------------------------------------------------------


def gaussian_epsilon(sensitivity: float, delta: float) -> float:
    """The exact epsilon of a Gaussian mechanism (Balle & Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        shift = epsilon / sensitivity
        above = stats.norm.cdf(sensitivity / 2 - shift)
        return float(above - math.exp(epsilon) * stats.norm.cdf(-sensitivity / 2 - shift) - delta)

    return float(optimize.brentq(excess, 1e-6, 200))


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 1), (20.0, 100), (10.0, 100)])
def test_epsilon_of_whole_batches_is_just_above_the_exact_one(noise: float, steps: int) -> None:
    exact = gaussian_epsilon(math.sqrt(steps) / noise, 1e-5)
    assert exact <= epsilon_spent(noise, 1.0, steps, 1e-5) <= 1.12 * exact


@pytest.mark.parametrize(("rate", "noise"), [(0.02, 0.8), (0.1, 1.5), (0.3, 3.0)])
def test_divergences_are_those_of_a_subsampled_gaussian(rate: float, noise: float) -> None:
    """Mironov, Talwar & Zhang 2019, section 3.3, at whole orders; and by integration at others."""
    from opacus.accountants.analysis import rdp

    def series(order: int) -> float:
        k = np.arange(order + 1)
        logs = np.log(special.comb(order, k)) + k * math.log(rate)
        logs += (order - k) * math.log1p(-rate) + (k * k - k) / (2 * noise**2)
        return float(special.logsumexp(logs)) / (order - 1)

    x = np.linspace(-30 * noise, 30 * noise + 60, 200_001)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))

    def by_integration(order: float) -> float:
        logs = order * ratio + stats.norm.logpdf(x, scale=noise) + math.log(x[1] - x[0])
        return float(special.logsumexp(logs)) / (order - 1)

    orders = [2, 3, 8, 20]
    found = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)
    np.testing.assert_allclose(found, [series(order) for order in orders], rtol=1e-8)
    found = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[1.5, 4.7])
    np.testing.assert_allclose(found, [by_integration(1.5), by_integration(4.7)], rtol=1e-6)
    # What we make of them: Balle et al. 2020, theorem 21.
    steps, delta = 500, 1e-5
    divergences = {a: by_integration(a) for a in np.arange(1.1, 11, 0.1)}
    divergences |= {a: series(a) for a in range(11, 64)}
    best = min(
        steps * d + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a, d in divergences.items()
    )
    assert epsilon_spent(noise, rate, steps, delta) == pytest.approx(best, rel=1e-5)


def test_epsilon_of_one_sampled_step_is_above_the_exact_one() -> None:
    rate, noise, delta = 0.1, 0.7, 1e-3

    def excess(epsilon: float, add: bool) -> float:
        """How much one side may exceed ``e^epsilon`` times the other, less delta."""

        def integrand(x: float) -> float:
            mixed = (1 - rate) * stats.norm.pdf(x, 0, noise) + rate * stats.norm.pdf(x, 1, noise)
            plain = stats.norm.pdf(x, 0, noise)
            p, q = (mixed, plain) if add else (plain, mixed)
            return max(p - math.exp(epsilon) * q, 0.0)

        return integrate.quad(integrand, -8, 9, limit=400)[0] - delta

    exact = max(optimize.brentq(excess, 0, 20, args=(add,)) for add in (True, False)
                if excess(0, add) > 0)  # fmt: skip
    assert exact <= epsilon_spent(noise, rate, 1, delta) <= 2 * exact


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 10.0])
def test_the_noise_for_an_epsilon_spends_it(epsilon: float) -> None:
    noise = noise_for(epsilon, 0.02, 3000, 1e-5)
    assert 0.99 * epsilon <= epsilon_spent(noise, 0.02, 3000, 1e-5) <= epsilon
    assert epsilon_spent(noise / (1 + PRECISION), 0.02, 3000, 1e-5) > epsilon, "less would do"


def test_an_epsilon_that_no_noise_gives_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise makes"):
        noise_for(1e-9, 0.02, 10**6, 1e-5)


# ---- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "people.parquet"
    pq.write_table(people(), path)
    return path


def private_config(table: Path, **changes: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {
        "data": {"source": str(table)},
        "privacy": {"epsilon": 3.0, "delta": 1e-3, "public": ["schema"]},
        "constraint": {"kind": "lipschitz_penalty"},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return tiny_config("rows", **sections)


@pytest.fixture(scope="module")
def private(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, str, Path]:
    """A private run's model, what was said, and its folder."""
    folder = tmp_path_factory.mktemp("private") / "run"
    model, _, said = trained(private_config(table), folder, register=False)
    return model, said, folder


def test_a_private_run_publishes_what_it_spent_and_nothing_of_the_rows(
    private: tuple[Model, str, Path],
) -> None:
    model, said, folder = private
    config = model.run.config
    run, rows = model.run, model.run.data.training_count
    card = run.privacy
    assert card is not None
    assert (card.steps, card.delta, card.public) == (4 * 2, 1e-3, ["schema"])
    assert card.sampling_rate == 8 / rows
    assert card.epsilon == epsilon_spent(card.noise_multiplier, 8 / rows, 8, 1e-3)
    assert 2.9 < card.epsilon <= 3
    assert card == privacy_card(config, rows)
    assert (run.results.figures, run.findings, run.history, run.marginals) == ({}, [], [], [])
    assert (run.data.sha256, run.lipschitz.sampled, run.lipschitz.gradient_norm) == ("", None, {})
    page = (folder / "artifact/MODEL_CARD.md").read_text()
    assert card.in_words in page
    assert "Not published" in page
    assert "\n\n\n" not in page
    assert "gradient norm" not in page
    # Percentiles of scores are those of generated rows.
    own = model.score(model.sample(config.training.seed, run.data.heldout_count))
    np.testing.assert_allclose(model.quantiles[500], np.median(own), rtol=1e-6)
    # The user has it all, beside the artifact.
    assert f"private: {card.in_words}" in said
    judged = json.loads((folder / "judged.json").read_text())
    assert judged["results"]["figures"]["column_shapes"]["value"] > 0
    assert judged["history"]
    # Declared public, it is all published, but for the hash, which confirms a guess of all rows.
    whole = Run.model_validate(judged)
    declared = card.model_copy(update={"public": ["schema", "figures"]})
    published = without_leaks(whole.model_copy(update={"privacy": declared}))
    assert (published.results, published.history) == (whole.results, whole.history)
    assert (whole.data.sha256 != "", published.data.sha256) == (True, "")
    assert "declared public: schema, figures" in declared.in_words
    assert "column_shapes" in (folder / "report.html").read_text()
    secret = folder / "checkpoints" / SECRET
    assert secret.stat().st_mode & 0o077 == 0
    key = secret.read_bytes()
    assert not any(key in path.read_bytes() for path in (folder / "artifact").iterdir())


def test_mlflow_is_told_no_more_than_the_artifact_tells(
    private: tuple[Model, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, folder = private
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    pages = {"report": folder / "report.html", "diagnosis": folder / "diagnosis.html"}
    reference = track_and_register(model, folder / "artifact", **pages)
    api = registry.client()
    run = api.get_run(registry.version(*registry.resolve(reference))["run_id"])
    assert run.data.metrics.keys() <= {"privacy.epsilon"}
    files = {path.name: path for path in (tmp_path / "mlartifacts").rglob("*.html")}
    assert "report.html" not in files
    assert files["diagnosis.html"].read_text() != pages["diagnosis"].read_text()


def test_the_service_tells_what_a_private_model_has_spent(
    private: tuple[Model, str, Path],
) -> None:
    model, _, folder = private
    app = made(WGAN_MODEL=str(folder / "artifact"), WGAN_DRIFT_WINDOW=50)

    async def ask(client: httpx.AsyncClient) -> None:
        card = model.run.privacy
        assert card is not None
        assert (await client.get("/v1/model")).json()["privacy"] == card.model_dump(mode="json")
        told = (await client.get("/metrics")).text
        labels = '{delta="0.001",model="artifact",role="champion"}'
        assert f"wgan_model_privacy_epsilon{labels} {card.epsilon}" in told
        assert (await client.get("/v1/drift")).status_code == 200

    talk(app, ask)


def test_the_critics_step_is_the_only_way_from_the_rows_to_the_networks(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without their gradients, other rows of the same number train the same networks."""
    clipped_sum = PrivateStep.clipped_sum

    def without_rows(step: PrivateStep, *arguments: Any) -> Any:
        gap, loss, total = clipped_sum(step, *arguments)
        assert flat(total).norm() > 0, "there was something to take away"
        return gap, loss, [torch.zeros_like(g) for g in total]

    monkeypatch.setattr(PrivateStep, "clipped_sum", without_rows)
    config = private_config(table, training={"log_every": 1, "batch_size": 64})
    data = load_data(config.data)
    others = dataclasses.replace(data, items=np.roll(data.items, 1, axis=0)[::-1].copy())
    found = []
    for number, rows in enumerate((data, others)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / SECRET).write_text(KEY.hex())
        state, history = train(config, rows, folder, CPU)
        found.append((state.tensors(), [row["critic_gap"] for row in history]))
    assert found[0][1] != found[1][1], "the rows did differ"
    for name, tensor in found[0][0].items():
        assert torch.equal(tensor, found[1][0][name]), name


def states(config: Config, data: Dataset, folder: Path, stops: list[int]) -> dict[str, Tensor]:
    """Train, stopping after these steps, with the same secret; the networks."""
    folder.mkdir()
    (folder / SECRET).write_text(KEY.hex())
    for stop in stops:
        asked = iter(range(1, 10**6))
        with pytest.raises(Interrupted):
            train(config, data, folder, CPU, stop_requested=lambda a=asked, s=stop: next(a) == s)  # type: ignore[misc]
    return train(config, data, folder, CPU)[0].tensors()


@pytest.mark.sampled
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_private_run_equals_an_uninterrupted_one(
    optimizer: str, table: Path, tmp_path: Path
) -> None:
    config = private_config(table, training={"steps": 6, "optimizer": optimizer})
    data = load_data(config.data)
    whole = states(config, data, tmp_path / "whole", [])
    resumed = states(config, data, tmp_path / "resumed", [2, 1])
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    (tmp_path / "resumed" / SECRET).unlink()
    assert newest_checkpoint(tmp_path / "resumed")
    with pytest.raises(CheckpointError, match="secret: is missing"):
        train(config, data, tmp_path / "resumed", CPU)


def test_two_runs_of_one_seed_have_secrets_of_their_own(table: Path, tmp_path: Path) -> None:
    config = private_config(table, training={"steps": 1})
    data = load_data(config.data)
    one, other = (train(config, data, tmp_path / n, CPU)[0].tensors() for n in ("a", "b"))
    assert not torch.equal(one["critic.body.0.weight"], other["critic.body.0.weight"])


def test_batches_without_rows_are_steps_too(table: Path, tmp_path: Path) -> None:
    config = private_config(table, training={"batch_size": 2, "steps": 8, "log_every": 100})
    rows = load_data(config.data).card.training_count
    secret = Secret(KEY)
    order = poisson_batches(secret, rows, 2, 0)
    assert any(len(next(order)) == 0 for _ in range(16))
    tensors = states(config, load_data(config.data), tmp_path / "run", [])
    assert all(t.isfinite().all() for t in tensors.values())


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {"epsilon": None}}, "set epsilon or noise_multiplier, one of the two"),
        ({"privacy": {"noise_multiplier": 1.0}}, "set epsilon or noise_multiplier, one of"),
        ({"privacy": {"epsilom": 1.0}}, r"privacy.epsilom: no such key; did you mean 'epsilon'"),
        ({"generator": {"normalization": "batch"}}, "generator.normalization: 'batch' mixes"),
        (
            {"critic": {"normalization": "batch"}, "constraint": {"kind": "weight_clipping"}},
            "critic.normalization: 'batch' mixes",
        ),
        ({"constraint": {"kind": "dragan"}}, "constraint dragan: its noise is as wide"),
        ({"constraint": {"kind": "max_gradient_penalty"}}, "only the steepest sample of a batch"),
        ({"training": {"precision": "bf16"}}, "training.precision: only fp32"),
        ({"training": {"critic_step": "captured"}}, "training.critic_step: a private step"),
    ],
)
def test_a_configuration_that_cannot_be_private_is_refused(
    table: Path, changes: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        private_config(table, **changes)


def test_a_schema_that_nobody_declared_public_is_refused(table: Path, tmp_path: Path) -> None:
    config = private_config(
        table, privacy={"public": []}, data={"rules": ["combination(home, member)"]}
    )
    with pytest.raises(ConfigError) as refused:
        train(config, load_data(config.data), tmp_path, CPU)
    message = str(refused.value)
    for name in (*people().column_names, "combination(home, member)"):
        assert name in message
    assert "privacy.public=schema" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_numbers_that_do_not_go_together_are_refused(table: Path, tmp_path: Path) -> None:
    data = load_data(private_config(table).data)
    for changes, message in (
        ({"privacy": {"delta": 0.1}}, "would allow to publish one of"),
        ({"training": {"batch_size": 1000}}, "are no sample"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(private_config(table, **changes), data, tmp_path, CPU)
    with pytest.raises(ConfigError, match="one process"):
        train(private_config(table), data, tmp_path, CPU, workers=Workers(0, 2))


def test_the_card_counts_critic_steps_and_takes_a_batch_s_share_of_the_rows(table: Path) -> None:
    own = {"epsilon": None, "noise_multiplier": 2.0, "clip_norm": 0.5, "delta": 2**-8}
    config = private_config(table, privacy=own, training={"steps": 6, "num_critic_steps": 3})
    card = privacy_card(config, 128)
    assert (card.sampling_rate, card.steps) == (8 / 128, 6 * 3)
    assert (card.noise_multiplier, card.clip_norm, card.delta) == (2.0, 0.5, 2**-8)
    assert card.epsilon == epsilon_spent(2.0, 1 / 16, 18, 2**-8)
    assert card.public == ["schema"]
    assert privacy_card(config, 8).sampling_rate == 1, "a batch may be all rows"
    privacy_card(config, 255)
    with pytest.raises(ConfigError, match="would allow to publish one of 256 rows"):
        privacy_card(config, 256)


def test_only_tables_are_private(tmp_path: Path) -> None:
    config = tiny_config(privacy={"epsilon": 1.0, "public": ["schema"]})
    with pytest.raises(ConfigError, match="is for tables"):
        train(config, load_data(config.data), tmp_path, CPU)


def test_a_record_of_other_runs_has_no_privacy(tmp_path: Path) -> None:
    source = tmp_path / "people.parquet"
    pq.write_table(pa.table({"x": np.arange(300) ** 2 % 97}), source)
    config = tiny_config("rows", data={"source": str(source)})
    trained(config, tmp_path / "run", register=False)
    record = json.loads((tmp_path / "run/artifact/run.json").read_text())
    assert "privacy" not in record
    assert "privacy" not in record["config"]
    assert load_artifact(tmp_path / "run/artifact").run.data.sha256
