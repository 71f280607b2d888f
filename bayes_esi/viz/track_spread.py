"""Posterior spread of what the figures of tracks draw: a moment along a direction, the field.

Both need the full conditional covariance of the moments, which a Kalman smoother gives for each
draw. Standard deviations along the three axes are not enough: in MEG the radial part of a moment
is hardly seen, so the axes share a large error that is absent along the direction that the data
do see.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..models import track_likelihood
from ..models.dynamic_dipoles import TrackPrior
from ..models.track_gram import build_track_gram

__all__ = ["moment_along", "track_field_law"]

# Draws that a figure averages: the standard error of a mean over 100 draws is a tenth of the
# posterior standard deviation, the width of a line.
_N_DRAWS = 100
_FEW_PLACES = 16

_smooth = jax.jit(track_likelihood.smoothed_moments)


def moment_along(posterior, number, direction):
    """Posterior mean and standard deviation of a track's moment along a fixed direction.

    Parameters
    ----------
    posterior : TrackPosterior
    number : int
        In ``posterior.tracks()``, from 0.
    direction : (n_axes,) array
        Unit vector.

    Returns
    -------
    mean, std : (n_times,) arrays
        In A·m, given that the dipole is alive at a sample; not a number where it never is.

    Notes
    -----
    The mean is that of ``posterior.tracks()``; the deviation is from up to 100 draws, and not a
    number where it is alive in none of them. Cost O(n_draws n_times (d n_slots)^3).
    """
    problem, design, lives = posterior.problem, posterior.design, posterior.lives
    members = posterior.members[:, number]
    draws = _spaced(np.flatnonzero(members >= 0), posterior)
    n_draws, n_times = len(draws), problem.n_times
    courses, variance = np.zeros((2, n_draws, n_times))
    alive = np.zeros((n_draws, n_times), bool)
    for row, (draw, mean, cov) in enumerate(_smoothed(posterior, draws)):
        life = members[draw]
        slot, samples = lives.slot[life], slice(lives.birth[life], lives.death[life])
        places = _flat(posterior.draws.places, draw)[samples, slot]
        along = problem.moment_unit * np.einsum("a,tad->td", direction, design.frames[places])
        alive[row, samples] = True
        courses[row, samples] = np.sum(along * mean[samples, slot], axis=1)
        own = cov[samples, slot, :, slot]
        variance[row, samples] = np.einsum("td,tde,te->t", along, own, along)
    mass = _weights(posterior, draws)[:, None] * alive
    total = mass.sum(axis=0)
    share = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
    centre = np.sum(share * courses, axis=0)
    variance = np.sum(share * (variance + (courses - centre) ** 2), axis=0)
    std = np.where(total > 0, np.sqrt(np.maximum(variance, 0.0)), np.nan)
    return direction @ posterior.tracks()[number].moment_mean, std


def track_field_law(posterior):
    """Mean and standard deviation of a new recording of the same response.

    Parameters
    ----------
    posterior : TrackPosterior

    Returns
    -------
    mean, std : (n_channels, n_times) arrays
        Posterior mean of the field, and the predictive standard deviation around it (trajectories,
        scales, moments and noise), in data units on the range of the noise covariance.

    Notes
    -----
    With F_t the field of the dipoles alive at a sample of a draw, m_t and P_t the smoothed mean and
    covariance of their moments and S the noise covariance of the draw, the variance is that of
    F_t m_t over draws plus the mean over draws of diag(F_t P_t F_t' + S).
    Cost O(n_draws n_times n_channels (d n_slots)^2).
    """
    problem = posterior.problem
    colouring = np.linalg.pinv(problem.whitener)
    seen = np.tensordot(colouring, np.asarray(posterior.design.lead_field, np.float64), axes=1)
    draws = _spaced(np.arange(posterior.draws.moment_std.size), posterior)
    weights = _weights(posterior, draws)
    shape = (problem.n_channels, problem.n_times)
    mean, square, own = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    # Squares are summed around the first field, which is near the mean: no digits are lost.
    origin = None
    for weight, (draw, moments, cov) in zip(weights, _smoothed(posterior, draws), strict=True):
        field, variance = _field(seen, _flat(posterior.draws.places, draw), moments, cov)
        noise = _flat(posterior.draws.noise_std, draw)[problem.noise_group] ** 2
        origin = field if origin is None else origin
        mean += weight * (field - origin)
        square += weight * (field - origin) ** 2
        own += weight * (variance + (colouring**2 @ noise)[:, None])
    return origin + mean, np.sqrt(own + np.maximum(square - mean**2, 0.0))


def _field(seen, places, moments, cov):
    """Field of the moments of a draw at each channel and sample, and its variance."""
    shape = (len(seen), len(places))
    field, variance = np.zeros(shape), np.zeros(shape)
    for t, held in enumerate(places):
        slots = np.flatnonzero(held >= 0)
        if slots.size:
            columns = seen[:, held[slots]].reshape(len(seen), -1)
            size = columns.shape[1]
            block = cov[t][slots][:, :, slots].reshape(size, size)
            field[:, t] = columns @ moments[t, slots].ravel()
            variance[:, t] = np.sum((columns @ block) * columns, axis=1)
    return field, variance


def _smoothed(posterior, draws):
    """Yield each draw with the smoothed means and covariances of its whitened moments."""
    problem, model, design = posterior.problem, posterior.model, posterior.design
    trajectories = [_flat(posterior.draws.places, draw) for draw in draws]
    visited = np.unique(np.concatenate([t[t >= 0] for t in trajectories] or [[0]]))
    visited = visited if visited.size else np.zeros(1, int)
    # Powers of two, so that posteriors with about as many places share one compiled kernel.
    n_padded = max(1 << int(np.ceil(np.log2(len(visited)))), _FEW_PLACES)
    padded = np.concatenate([visited, np.full(n_padded - len(visited), visited[0])])
    gram = build_track_gram(
        design.lead_field[:, padded],
        problem.data,
        problem.noise_group,
        problem.n_groups,
        tabulate=False,
    )
    dtype = gram.field.dtype
    # Places, births, deaths and scales are given: all else that is believed of moments is how
    # they persist.
    prior = TrackPrior(
        log_place=jnp.zeros(1, dtype),
        neighbours=None,
        log_step=None,
        persistence=jnp.asarray(model.moment_persistence, dtype),
        scales=(),
        probabilities=(),
    )
    number = np.full(problem.n_sources, -1, np.int32)
    number[visited] = np.arange(len(visited))
    for draw, places in zip(draws, trajectories, strict=True):
        moment_std = _flat(posterior.draws.moment_std, draw) / problem.moment_unit
        noise_std = _flat(posterior.draws.noise_std, draw)
        parameters = np.concatenate([[np.log(moment_std)], np.log(noise_std), [0.0, 0.0]])
        index = np.where(places >= 0, number[places], -1).astype(np.int32)
        is_new = _flat(posterior.draws.is_new, draw)
        mean, cov = _smooth(gram, prior, parameters.astype(dtype), index, is_new)
        yield draw, np.asarray(mean, np.float64), np.asarray(cov, np.float64)


def _spaced(available, posterior):
    """Some of the pooled draws that count, evenly spaced."""
    available = available[posterior.run_weights[_run_of(posterior, available)] > 0]
    kept = np.linspace(0, len(available) - 1, min(len(available), _N_DRAWS)).astype(int)
    return available[np.unique(kept)]


def _weights(posterior, draws):
    weights = posterior.run_weights[_run_of(posterior, draws)]
    return weights / weights.sum()


def _run_of(posterior, draws):
    return draws // posterior.draws.places.shape[1]


def _flat(array, draw):
    """Row of an array (n_runs, n_draws, ...) at a pooled draw."""
    return array[divmod(int(draw), array.shape[1])]
