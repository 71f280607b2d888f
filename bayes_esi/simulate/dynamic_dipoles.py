"""Dipoles that are born, live and die: drawn from the prior of `DynamicDipoles`, or as told.

`draw_problem` is for calibration: births, deaths, places, walks, moments and noise follow the law
in the docstring of `models.dynamic_dipoles`, written anew here and not called from the samplers,
so that calibration compares two readings of the model. Its lead field is that of the
inversion: right for checking a sampler, too kind for measuring localisation.

`simulate_tracks` is for benchmarks: dipoles with given places, lives and moment courses, seen
through a lead field of one's own.

    data_t = sum_i lead_field[:, place_i(t)] moment_i(t) + noise_t

References: Sorrentino, Johansen, Aston, Nichols, Kendall 2013, doi:10.1214/12-AOAS611 (the
model).
"""

import dataclasses

import jax
import numpy as np

from ..core.checks import check_array
from ..models.dipole_beliefs import place_weights
from ..models.orientation import orient

__all__ = ["Track", "TrackTruth", "draw_problem", "draw_tracks", "simulate_tracks"]


@dataclasses.dataclass(frozen=True, eq=False)
class TrackTruth:
    """What data were made of.

    Attributes
    ----------
    places : (n_times, n_slots) int
        Source of the dipole in each slot, -1 where it is empty.
    is_new : (n_times, n_slots) bool
        True where a dipole lives its first sample.
    moments : (n_slots, n_axes, n_times)
        In A·m, zero where a slot is empty; along the axes of space (three), or along the one
        orientation of a lead field that came without normals.
    moment_std : float or None
        In A·m. None, as the three below: the dipoles were told, not drawn.
    noise_std : (n_groups,) or None
        Relative to the noise covariance.
    birth_prob, death_prob : float or None
    """

    places: np.ndarray
    is_new: np.ndarray
    moments: np.ndarray
    moment_std: float | None = None
    noise_std: np.ndarray | None = None
    birth_prob: float | None = None
    death_prob: float | None = None

    @property
    def n_dipoles(self):
        """Number alive at each sample: (n_times,)."""
        return np.sum(self.places >= 0, axis=1)

    def lives(self):
        """Each dipole's slot, first and last sample: list of (slot, first, last), by birth."""
        found = []
        for first, slot in zip(*np.nonzero(self.is_new), strict=True):
            is_over = (self.places[first + 1 :, slot] < 0) | self.is_new[first + 1 :, slot]
            n_more = np.argmax(is_over) if np.any(is_over) else len(is_over)
            found.append((int(slot), int(first), int(first + n_more)))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """The life of one dipole.

    Attributes
    ----------
    places : int or (n_samples,) int
        Its source, or that of each sample of its life if it walks.
    birth, death : float
        Times in s of the first and the last sample at which it is alive.
    moment : (n_axes, n_samples) array or callable
        In A·m along the orientations of the lead field, at the samples of its life; one
        orientation may come as (n_samples,). A callable takes the times (n_samples,) in s.
    """

    places: object
    birth: float
    death: float
    moment: object


def draw_problem(key, model, template):
    """Draw the unknowns of a model from their prior, and data from the likelihood.

    Parameters
    ----------
    key : PRNG key
    model : DynamicDipoles
        With `moment_std` and `noise_std` known, or NumPyro distributions.
    template : Problem
        Lead field, geometry and times. Its data are not looked at.

    Returns
    -------
    problem : Problem
        The template with other data.
    truth : TrackTruth

    Raises
    ------
    ValueError
        If a scale of the model is None: that prior looks at the data, so that there is nothing
        to draw from before they exist; or if there are no more places than dipoles.

    Notes
    -----
    Cost O(n_times (n_sources max_dipoles + rank)).
    """
    key_tracks, key_noise = jax.random.split(key)
    truth, components = _draw(key_tracks, model, template)
    field = np.asarray(orient(template, model.loose).lead_field, np.float64)
    signal = np.zeros((field.shape[0], template.n_times))
    for t, slot in zip(*np.nonzero(truth.places >= 0), strict=True):
        signal[:, t] += field[:, truth.places[t, slot]] @ components[slot, :, t]
    noise = _generator(key_noise).standard_normal(signal.shape)
    noise *= truth.noise_std[template.noise_group][:, None]
    data = signal / template.moment_unit + noise
    return dataclasses.replace(template, data=data.astype(template.data.dtype)), truth


def draw_tracks(key, model, template):
    """Draw the unknowns of a model from their prior, without data.

    Parameters and errors as for `draw_problem`.

    Returns
    -------
    TrackTruth
    """
    return _draw(key, model, template)[0]


def simulate_tracks(key, tracks, lead_field, times, noise_cov=None):
    """Make data of dipoles whose places, lives and moments are given.

    Parameters
    ----------
    key : PRNG key
    tracks : sequence of Track
    lead_field : (n_channels, n_sources, n_axes) array or LeadField
        In data units for each A·m. Localisation is measured fairly with another one than that
        of the inversion: another head model, or sources off the inversion's grid.
    times : (n_times,) array
        Of the samples, in s, ascending.
    noise_cov : (n_channels, n_channels) array, optional
        In squared data units; noise is independent over samples. None: no noise.

    Returns
    -------
    data : (n_channels, n_times)
        In the units of the lead field times A·m.
    truth : TrackTruth
        Its places are sources of the given lead field.

    Raises
    ------
    ValueError
        On a life without a sample, places that do not exist, moments or places of another
        length than the life, a covariance that is not positive semidefinite.

    Notes
    -----
    Cost O(n_channels n_axes) for each sample of each life, and O(n_channels^3) for the noise.
    """
    lead_field = check_array("lead_field", np.asarray(lead_field), ndim=3)
    times = check_array("times", times, ndim=1)
    if np.any(np.diff(times) <= 0):
        raise ValueError("times must ascend; sort the samples.")
    n_channels, n_sources, n_axes = lead_field.shape
    lives = [_life(i, track, times, n_sources, n_axes) for i, track in enumerate(tracks)]
    order = sorted(range(len(lives)), key=lambda i: lives[i][0][0])
    ends = []  # last sample at which each slot is held
    slots = {}
    for i in order:
        alive = lives[i][0]
        free = [slot for slot, end in enumerate(ends) if end < alive[0]]
        slots[i] = free[0] if free else len(ends)
        ends[slots[i] : slots[i] + 1] = [alive[-1]]

    places = np.full((len(times), len(ends)), -1)
    is_new = np.zeros(places.shape, bool)
    moments = np.zeros((len(ends), n_axes, len(times)))
    data = np.zeros((n_channels, len(times)))
    for i, slot in slots.items():
        alive, held, moment = lives[i]
        places[alive, slot] = held
        is_new[alive[0], slot] = True
        moments[slot][:, alive] = moment
        data[:, alive] += np.einsum("cnx,xn->cn", lead_field[:, held], moment)
    if noise_cov is not None:
        data += _root(noise_cov, n_channels) @ _generator(key).standard_normal(data.shape)
    return data, TrackTruth(places, is_new, moments)


def _draw(key, model, template):
    """Truth, and its moments (n_slots, d, n_times) in the coordinates of the orientation law."""
    for name in ("moment_std", "noise_std"):
        if getattr(model, name) is None:
            raise ValueError(
                f"{name} must be a number or a numpyro distribution to draw from the prior, got "
                "None, whose prior looks at the data. Give the model an explicit one."
            )
    weights = place_weights(model.location_prior, template)
    if np.count_nonzero(weights) <= model.max_dipoles:
        raise ValueError(
            f"max_dipoles is {model.max_dipoles}, but only {np.count_nonzero(weights)} sources "
            "can hold a dipole; lower it, or give more sources."
        )
    key_moment, key_noise, key_birth, key_death, key_rest = jax.random.split(key, 5)
    moment_std = _value(key_moment, model.moment_std, 1)[0]
    noise_std = _value(key_noise, model.noise_std, template.n_groups)
    birth_prob = _value(key_birth, model.birth_prob, 1)[0]
    death_prob = _value(key_death, model.death_prob, 1)[0]
    rng = _generator(key_rest)

    frames = orient(template, model.loose).frames
    n_axes, d = frames.shape[1:]
    n_times, n_slots, a = template.n_times, model.max_dipoles, model.moment_persistence
    places = np.full((n_times, n_slots), -1)
    is_new = np.zeros((n_times, n_slots), bool)
    components = np.zeros((n_slots, d, n_times))
    moments = np.zeros((n_slots, n_axes, n_times))
    before = np.full(n_slots, -1)
    for t in range(n_times):
        after = before.copy()
        for slot in np.flatnonzero(before >= 0):
            if rng.random() < death_prob:
                after[slot] = -1
            elif model.motion != "static":
                after[slot] = _walk(rng, before[slot], template, weights, model.motion)
        has_room = np.any(before < 0)
        if has_room and rng.random() < birth_prob:
            free = weights.copy()
            free[after[after >= 0]] = 0.0
            slot = np.flatnonzero(after < 0)[0]
            after[slot] = rng.choice(len(free), p=free / free.sum())
            is_new[t, slot] = True
        for slot in np.flatnonzero(after >= 0):
            fresh = moment_std * rng.standard_normal(d)
            if not is_new[t, slot]:
                fresh = a * components[slot, :, t - 1] + np.sqrt(1 - a**2) * fresh
            components[slot, :, t] = fresh
            moments[slot, :, t] = frames[after[slot]] @ fresh
        places[t] = before = after
    truth = TrackTruth(
        places=places,
        is_new=is_new,
        moments=moments,
        moment_std=float(moment_std),
        noise_std=noise_std,
        birth_prob=float(birth_prob),
        death_prob=float(death_prob),
    )
    return truth, components


def _walk(rng, place, template, weights, step):
    """One step of Metropolis' walk: propose a place of the neighbourhood, accept or stay."""

    def proposals(source):
        row = template.neighbours[source]
        near = np.concatenate([[source], row[row >= 0]])
        squared = np.sum((template.source_pos[near] - template.source_pos[source]) ** 2, axis=1)
        kernel = np.exp(-squared / (2 * step**2))
        return near, kernel / kernel.sum()

    near, prob = proposals(place)
    chosen = rng.choice(len(near), p=prob)
    back, back_prob = proposals(near[chosen])
    there = weights[place] * prob[chosen]
    and_back = weights[near[chosen]] * back_prob[back == place][0]
    return near[chosen] if rng.random() * there < and_back else place


def _life(number, track, times, n_sources, n_axes):
    """Samples, places and moments (n_axes, n) of a track, checked."""
    name = f"tracks[{number}]"
    # Times of samples are sums and products of steps: equal up to rounding is equal.
    slack = 1e-6 * np.min(np.diff(times)) if len(times) > 1 else 0.0
    alive = np.flatnonzero((times >= track.birth - slack) & (times <= track.death + slack))
    if alive.size == 0:
        raise ValueError(
            f"{name} lives from {track.birth} to {track.death} s, without a sample of times, which "
            f"run from {times[0]:g} to {times[-1]:g} s."
        )
    places = np.asarray(track.places)
    if places.dtype.kind not in "iu" or places.shape not in ((), (alive.size,)):
        raise ValueError(
            f"{name}.places must be a source number, or one for each of its {alive.size} samples, "
            f"got {places.dtype} of shape {places.shape}."
        )
    if places.min() < 0 or places.max() >= n_sources:
        raise ValueError(f"{name}.places must lie between 0 and {n_sources - 1}, got {places}.")
    moment = track.moment(times[alive]) if callable(track.moment) else track.moment
    moment = np.asarray(moment)
    if moment.ndim == 1:
        moment = moment[None]
    moment = check_array(
        f"{name}.moment",
        moment,
        shape=(n_axes, alive.size),
        remedy="It has a row for each orientation of lead_field, a column for each sample alive.",
    )
    return alive, np.broadcast_to(places, alive.shape), moment


def _root(noise_cov, n_channels):
    """A matrix whose product with its transpose is the covariance, of any rank."""
    noise_cov = check_array("noise_cov", noise_cov, shape=(n_channels, n_channels))
    # Channel types differ by orders of magnitude: signs are judged at unit variances.
    scale = np.sqrt(np.abs(np.diag(noise_cov)))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = noise_cov / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(scaled)
    if values[0] < -1e-6 * max(values[-1], 0.0) or not np.allclose(scaled, scaled.T, atol=1e-6):
        raise ValueError("noise_cov must be symmetric and positive semidefinite.")
    return scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))


def _value(key, law, size):
    """Values in the user's unit: a known one repeated, or independent draws: (size,)."""
    if hasattr(law, "sample"):
        return np.asarray(law.sample(key, (size,)), np.float64)
    return np.full(size, float(law))


def _generator(key):
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
