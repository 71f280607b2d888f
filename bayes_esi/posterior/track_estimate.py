"""What a posterior says of one dipole's life, from the lives that were matched across draws."""

import dataclasses

import numpy as np

from .credible import credible_set, to_millilitres

__all__ = ["TrackEstimate", "estimate_track", "moments_of_life"]

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class TrackEstimate:
    """One dipole's life, matched across draws. All but `probability` are given that it exists.

    Attributes
    ----------
    probability : float
        That it exists.
    birth_pmf : (n_times,)
        Probability of each sample to be its first.
    death_pmf : (n_times + 1,)
        Probability of each sample to be the first without it; the last entry: it is alive at the
        end of the data.
    birth, death : float
        Posterior mean times of its first and of its last sample, in s.
    birth_interval, death_interval : (float, float)
        Their 95 % equal-tailed intervals, in s.
    prob_alive : (n_times,)
        Probability that it is alive at each sample.
    pos : (3,)
        Posterior mean position, in m; of a walking dipole, over its life.
    pos_cov : (3, 3)
        Posterior covariance of the position, in m^2, over its life likewise. A source stands for
        a cell of the grid or of the cortex, within which the position is uniform
        (`Problem.cell_variance`).
    path : (n_times, 3)
        Mean position at each sample, in m: `pos` throughout, unless the dipole walks; then given
        that it is alive at that sample, and NaN where it never is.
    place_pmf : (n_sources,)
        Probability of each place; of a walking dipole, at a random sample of its life.
    credible_set : (n_places,) int
        Smallest set of sources with 95 % of it, most probable first.
    credible_volume : float
        Volume of that set, in mL.
    moment_mean, moment_std : (n_axes, n_times)
        In A·m, given that it is alive at that sample, NaN where it never is. Along the axes of
        space (three), or along the one orientation of a lead field that came without normals.
    explained_power : float
        Whitened power of its field, summed over channels and the samples of its life.
    """

    probability: float
    birth_pmf: np.ndarray
    death_pmf: np.ndarray
    birth: float
    death: float
    birth_interval: tuple
    death_interval: tuple
    prob_alive: np.ndarray
    pos: np.ndarray
    pos_cov: np.ndarray
    path: np.ndarray
    place_pmf: np.ndarray
    credible_set: np.ndarray
    credible_volume: float
    moment_mean: np.ndarray
    moment_std: np.ndarray
    explained_power: float


def estimate_track(problem, weights, is_alive, places, moments, *, is_walking):
    """Sum up the lives of one dipole in all draws that have it.

    Parameters
    ----------
    problem : Problem
    weights : (n_lives,) array
        Probabilities of the draws, whose sum is that of the dipole.
    is_alive : (n_lives, n_times) bool array
        One stretch of samples in each row.
    places : (n_lives, n_times) int array
        Read where alive.
    moments : tuple
        Of `moments_of_life`.
    is_walking : bool

    Returns
    -------
    TrackEstimate
    """
    times, source_pos = problem.times, problem.source_pos
    n_times = len(times)
    probability = float(weights.sum())
    weights = weights / probability
    birth = np.argmax(is_alive, axis=1)
    death = birth + is_alive.sum(axis=1)
    birth_pmf = np.bincount(birth, weights=weights, minlength=n_times)
    death_pmf = np.bincount(death, weights=weights, minlength=n_times + 1)

    mass = weights[:, None] * is_alive
    prob_alive = mass.sum(axis=0)
    share = mass / (death - birth)[:, None]
    pmf = np.bincount(places[is_alive], share[is_alive], minlength=len(source_pos))
    pos = pmf @ source_pos
    offset = source_pos - pos
    chosen = credible_set(pmf, _LEVEL)
    path = np.tile(pos, (n_times, 1))
    if is_walking:
        path = _ratio(np.einsum("nt,nta->ta", mass, source_pos[places]), prob_alive[:, None])
    mean, std, power = moments
    return TrackEstimate(
        probability=min(probability, 1.0),
        birth_pmf=birth_pmf,
        death_pmf=death_pmf,
        birth=float(birth_pmf @ times),
        death=float(death_pmf[1:] @ times),
        birth_interval=_interval(birth_pmf, times),
        death_interval=_interval(death_pmf[1:], times),
        prob_alive=np.minimum(prob_alive, 1.0),
        pos=pos,
        pos_cov=(offset * pmf[:, None]).T @ offset + pmf @ problem.cell_variance * np.eye(3),
        path=path,
        place_pmf=pmf,
        credible_set=chosen,
        credible_volume=to_millilitres(problem.source_volume[chosen].sum()),
        moment_mean=mean,
        moment_std=std,
        explained_power=power,
    )


def moments_of_life(is_alive, shares, means, stds, powers):
    """Moments of one dipole over the draws that have them, by the law of total variance.

    Parameters
    ----------
    is_alive : (n_draws, n_times) bool array
    shares : (n_draws,) array
        Shares of the draws in the posterior. Draws of share zero count where no other is alive.
    means, stds : (n_draws, n_times, n_axes) array
        Conditionals of each draw.
    powers : (n_draws, n_times) array

    Returns
    -------
    mean, std : (n_axes, n_times) array
        Given that it is alive at that sample, NaN where no draw has it alive.
    power : float
        Expected sum over its life.
    """
    if not shares.any():
        shares = np.ones(len(shares))
    mass = shares[:, None] * is_alive
    is_missing = mass.sum(axis=0) == 0
    mass[:, is_missing] = is_alive[:, is_missing]
    total = mass.sum(axis=0)
    mean = _ratio(np.einsum("nt,nta->at", mass, means), total)
    between = np.where(is_alive[:, :, None], means - mean.T, 0.0) ** 2
    variance = _ratio(np.einsum("nt,nta->at", mass, between + stds**2), total)
    power = shares @ np.sum(powers * is_alive, axis=1) / shares.sum()
    return mean, np.sqrt(variance), float(power)


def _interval(pmf, times):
    """Equal-tailed interval of a law of samples, in s."""
    cumulative = np.cumsum(pmf)
    tail = 0.5 * (1 - _LEVEL)
    # A share of one part in 10^12 is rounding, not probability.
    levels = np.array([tail, 1 - tail]) * cumulative[-1] - 1e-12
    low, high = np.searchsorted(cumulative, levels)
    return float(times[low]), float(times[high])


def _ratio(values, mass):
    """Quotient, NaN where there is no mass."""
    mass = np.broadcast_to(mass, values.shape)
    return np.divide(values, mass, out=np.full(values.shape, np.nan), where=mass > 0)
