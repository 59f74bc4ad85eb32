"""What differentially private training spends, by Opacus' accountant of Renyi divergences.

Each critic step is a Gaussian mechanism on a Poisson sample of the training rows (Mironov, Talwar &
Zhang 2019). Its divergences add up over steps, and give one epsilon for a delta (Balle et al. 2020,
theorem 21). Two data sets are neighbours if one has one row more.
"""

from __future__ import annotations

import warnings

import numpy as np

from models.config import Config
from models.errors import ConfigError, needs
from models.record import PrivacyCard

ORDERS = [*np.arange(1.1, 11, 0.1).tolist(), *range(11, 64), 80, 128, 256, 512, 1024]
"""Orders of the divergence; the best of them gives epsilon."""
PRECISION = 1e-3
"""Relative error, on the safe side, of the noise that is found for an epsilon."""
LARGEST_NOISE = 1e4


def epsilon_spent(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Compute the epsilon of training.

    Args:
        noise_multiplier: standard deviation of the noise, in units of a row's largest share.
        sampling_rate: probability with which a row is in a step's sample.
        steps: critic steps.
        delta: chance, at most, with which epsilon may not hold.

    Raises:
        UserError: Opacus is not installed.
    """
    with needs("privacy"):
        from opacus.accountants.analysis import rdp
    divergences = rdp.compute_rdp(
        q=sampling_rate, noise_multiplier=noise_multiplier, steps=steps, orders=ORDERS
    )
    with warnings.catch_warnings():
        # Another order would give a smaller epsilon; this one holds too.
        warnings.filterwarnings("ignore", "Optimal order")
        epsilon, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=divergences, delta=delta)
    return float(epsilon)


def noise_for(epsilon: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Find the least noise multiplier, up to `PRECISION`, that spends at most an epsilon.

    Raises:
        ConfigError: none does.
    """
    low, high = 1e-2, LARGEST_NOISE
    if epsilon_spent(high, sampling_rate, steps, delta) > epsilon:
        raise ConfigError(
            f"privacy.epsilon: no noise makes {steps} critic steps spend {epsilon:g} only; raise "
            "it, or set fewer training.steps or a smaller training.batch_size"
        )
    while high > low * (1 + PRECISION):
        middle = (low * high) ** 0.5
        if epsilon_spent(middle, sampling_rate, steps, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


def privacy_card(config: Config, rows: int) -> PrivacyCard:
    """Find the noise of a run and what it spends in all its steps.

    Args:
        config: with a privacy section.
        rows: training rows.

    Raises:
        ConfigError: the section does not suit so many rows.
    """
    privacy, training = config.privacy, config.training
    assert privacy is not None, "only private runs are accounted for"
    if training.batch_size > rows:
        raise ConfigError(
            f"training.batch_size: {training.batch_size} rows of {rows} are no sample; set fewer"
        )
    if privacy.delta * rows >= 1:
        raise ConfigError(
            f"privacy.delta: {privacy.delta:g} would allow to publish one of {rows} rows; set it "
            f"below {1 / rows:.1g}"
        )
    rate, steps = training.batch_size / rows, training.steps * training.num_critic_steps
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None, "one of the two is set"
        noise = noise_for(privacy.epsilon, rate, steps, privacy.delta)
    return PrivacyCard(
        epsilon=epsilon_spent(noise, rate, steps, privacy.delta),
        delta=privacy.delta,
        noise_multiplier=noise,
        clip_norm=privacy.clip_norm,
        sampling_rate=rate,
        steps=steps,
        public=list(privacy.public),
    )
