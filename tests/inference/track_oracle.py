"""Truth for `DynamicDipoles` by brute force: every trajectory of a small problem, in plain NumPy.

Written from the law in the docstring of `bayes_esi.models.dynamic_dipoles`, and calling nothing of
the package but `Problem` and `DynamicDipoles` themselves. Trajectories form a tree: a node at
sample t is a prefix, its children are what can follow. One Kalman step a node, in covariance form,
gives the density of the data up to t, so that the law of everything, filtered and smoothed, is a
sum over nodes. `dense_law` is a second truth for a single trajectory: one large Gaussian.

Tests find this module by its name: `tests/conftest.py` puts the folder on the path, because
pytest's import mode "importlib" does not.

    import track_oracle
    problem, model = track_oracle.toy_one()
    truth = track_oracle.exact(problem, model)

Cost O(n_nodes (rank^3 + (n_slots d)^3)): toy_one takes about a second.
"""

import dataclasses
import itertools

import numpy as np

from bayes_esi.models.dynamic_dipoles import DynamicDipoles
from bayes_esi.models.problem import Problem

# Nodes that one batch of matrices holds: bounds the memory.
CHUNK = 20_000


@dataclasses.dataclass(frozen=True)
class Level:
    """All prefixes that end at one sample."""

    parent: np.ndarray  # (n,) node of the level before
    places: np.ndarray  # (n, n_slots), -1 where empty
    is_new: np.ndarray  # (n, n_slots)
    log_prior: np.ndarray  # (n,) of the whole prefix


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Every trajectory: (n_traj, n_times, n_slots), with the log prior probability of each."""

    places: np.ndarray
    is_new: np.ndarray
    log_prior: np.ndarray
    levels: tuple  # the tree: a Level for each sample
    nodes: np.ndarray  # (n_traj, n_times): the node of each level that a trajectory passes


@dataclasses.dataclass(frozen=True)
class Exact:
    """The posterior, summed over all trajectories. Log densities are in the units of the data."""

    log_evidence: float
    cumulative_log_evidence: np.ndarray  # (n_times,) of the samples up to each
    filtering_n_dipoles_pmf: np.ndarray  # (n_times, max_dipoles + 1)
    n_dipoles_pmf: np.ndarray  # (n_times, max_dipoles + 1), smoothed
    filtering_intensity: np.ndarray  # (n_times, n_sources) expected number of dipoles
    intensity: np.ndarray  # (n_times, n_sources), smoothed
    birth_intensity: np.ndarray  # (n_times,) expected number of dipoles whose first sample it is
    death_intensity: np.ndarray  # (n_times,) expected number alive a sample before and no more
    # Expected number of dipoles alive at the last sample, by birth time and last place: with one
    # dipole at most, their joint law.
    birth_and_place: np.ndarray  # (n_times, n_sources)
    filtering_moment: np.ndarray  # (n_times, n_sources, d) A·m, E[sum of moments at the place]
    mean_moment: np.ndarray  # (n_times, n_sources, d) A·m, smoothed
    trajectories: Trajectories
    log_likelihood: np.ndarray  # (n_traj,)
    probability: np.ndarray  # (n_traj,) posterior


def enumerate_trajectories(
    n_times, n_sources, max_dipoles, birth_prob, death_prob, location_weights=None, walk=None
):
    """List every trajectory of the law with its log prior probability.

    `walk` is a matrix (n_sources, n_sources) of probabilities of a survivor's next place; None:
    it stays. Slots follow the rule of the law, a newborn in the first that no survivor holds, so
    that every outcome stands once and the probabilities sum to one.
    """
    weights = np.ones(n_sources) if location_weights is None else np.asarray(location_weights)
    walk = np.eye(n_sources) if walk is None else walk
    known = {}
    states = np.full((1, max_dipoles), -1)
    log_prior = np.zeros(1)
    levels = []
    for _ in range(n_times):
        parts = []
        for parent, state in enumerate(states):
            before = tuple(int(place) for place in state)
            if before not in known:
                known[before] = _successors(before, birth_prob, death_prob, weights, walk)
            after, is_new, log_prob = known[before]
            parts.append((np.full(len(after), parent), after, is_new, log_prior[parent] + log_prob))
        levels.append(Level(*(np.concatenate(part) for part in zip(*parts, strict=True))))
        states, log_prior = levels[-1].places, levels[-1].log_prior
    nodes = [np.arange(len(log_prior))]
    for level in levels[:0:-1]:
        nodes.append(level.parent[nodes[-1]])
    nodes = np.stack(nodes[::-1], axis=1)
    places, is_new = (
        np.stack([getattr(level, name)[nodes[:, t]] for t, level in enumerate(levels)], axis=1)
        for name in ("places", "is_new")
    )
    return Trajectories(places, is_new, log_prior, tuple(levels), nodes)


def log_likelihoods(places, is_new, lead_field, data, moment_std, noise_std, persistence):
    """Log density of whitened data for each trajectory, by a Kalman filter in covariance form.

    Parameters
    ----------
    places, is_new : (n_traj, n_times, n_slots)
    lead_field : (rank, n_sources, d)
    data : (rank, n_times)
    moment_std : float
    noise_std : float or (rank,)
    persistence : float

    Returns
    -------
    (n_traj,)
    """
    sensors = _Sensors(lead_field, moment_std, noise_std, persistence)
    moments = sensors.nobody(len(places), places.shape[2])
    total = np.zeros(len(places))
    for t in range(places.shape[1]):
        *moments, log_density = sensors.step(*moments, places[:, t], is_new[:, t], data[:, t])
        total += log_density
    return total


def dense_law(places, is_new, lead_field, data, moment_std, noise_std, persistence):
    """Log density of the data given one trajectory, and the law of its moments, from one Gaussian.

    Parameters as for `log_likelihoods`, of one trajectory: places, is_new (n_times, n_slots).

    Returns
    -------
    log_likelihood : float
    mean : (n_times, n_slots, d), zero where a slot is empty
    cov : (n_times, n_slots, d, n_times, n_slots, d), zero where a slot is empty
    """
    rank, _, d = lead_field.shape
    n_times, n_slots = places.shape
    # Number of the life that each slot leads at each sample: moments of two lives are independent.
    life = np.cumsum(is_new, axis=0)
    prior = np.zeros((n_times, n_slots, d, n_times, n_slots, d))
    field = np.zeros((n_times, rank, n_times, n_slots, d))
    for t, slot in zip(*np.nonzero(places >= 0), strict=True):
        field[t, :, t, slot] = lead_field[:, places[t, slot]]
        for u in range(n_times):
            if places[u, slot] >= 0 and life[u, slot] == life[t, slot]:
                prior[t, slot, :, u, slot] = (
                    moment_std**2 * float(persistence) ** abs(t - u) * np.eye(d)
                )
    size = n_times * n_slots * d
    prior, field = prior.reshape(size, size), field.reshape(n_times * rank, size)
    noise = np.broadcast_to(np.asarray(noise_std, float), (rank,))
    cov = field @ prior @ field.T + np.diag(np.tile(noise**2, n_times))
    values = data.T.ravel()
    weighted = np.linalg.solve(cov, values)
    _, log_det = np.linalg.slogdet(cov)
    log_likelihood = -0.5 * (values @ weighted + log_det + values.size * np.log(2 * np.pi))
    mean = prior @ field.T @ weighted
    moment_cov = prior - prior @ field.T @ np.linalg.solve(cov, field @ prior)
    shape = (n_times, n_slots, d)
    return log_likelihood, mean.reshape(shape), moment_cov.reshape(shape + shape)


def exact(problem, model):
    """Sum over all trajectories of a small problem.

    Parameters
    ----------
    problem : Problem
        One moment component a place, or three free ones.
    model : DynamicDipoles
        With known scales and probabilities.

    Returns
    -------
    Exact
    """
    n_times, n_sources = problem.n_times, problem.n_sources
    assert problem.n_orient == 1 or model.loose == 1
    weights = np.ones(n_sources) if model.location_prior is None else model.location_prior
    walk = None if model.motion == "static" else walk_matrix(problem, weights, model.motion)
    every = enumerate_trajectories(
        n_times, n_sources, model.max_dipoles, model.birth_prob, model.death_prob, weights, walk
    )
    sensors = _Sensors(
        np.asarray(problem.lead_field, float),
        model.moment_std / problem.moment_unit,
        model.noise_std,
        model.moment_persistence,
    )
    filtered, log_likelihoods_of_prefixes = _filter_tree(every, sensors, np.asarray(problem.data))
    jacobian = problem.log_jacobian / n_times
    cumulative, filters = [], []
    for t, level in enumerate(every.levels):
        joint = level.log_prior + log_likelihoods_of_prefixes[t]
        total = _log_sum_exp(joint)
        cumulative.append(total + (t + 1) * jacobian)
        filters.append(np.exp(joint - total))
    smoothers = [filters[-1]]
    for t in range(n_times - 1, 0, -1):
        mass = np.bincount(
            every.levels[t].parent, smoothers[0], minlength=len(every.levels[t - 1].parent)
        )
        smoothers.insert(0, mass)

    births = [s @ level.is_new.sum(1) for s, level in zip(smoothers, every.levels, strict=True)]
    numbers = [s @ _count(level) for s, level in zip(smoothers, every.levels, strict=True)]
    deaths = np.concatenate([[0.0], numbers[:-1] - np.array(numbers[1:]) + births[1:]])
    smoothed_mean = _smoothed_means(every, filtered, sensors)
    unit = problem.moment_unit
    return Exact(
        log_evidence=cumulative[-1],
        cumulative_log_evidence=np.array(cumulative),
        filtering_n_dipoles_pmf=_numbers(every.levels, filters),
        n_dipoles_pmf=_numbers(every.levels, smoothers),
        filtering_intensity=_intensity(every.levels, filters, n_sources),
        intensity=_intensity(every.levels, smoothers, n_sources),
        birth_intensity=np.array(births),
        death_intensity=deaths,
        birth_and_place=_birth_and_place(every, smoothers[-1], n_sources),
        filtering_moment=unit
        * np.stack(
            [
                _at_places(w, level.places, mean, n_sources)
                for w, level, (mean, _) in zip(filters, every.levels, filtered, strict=True)
            ]
        ),
        mean_moment=unit
        * np.stack(
            [
                _at_places(smoothers[-1], every.places[:, t], smoothed_mean[:, t], n_sources)
                for t in range(n_times)
            ]
        ),
        trajectories=every,
        log_likelihood=log_likelihoods_of_prefixes[-1] + n_times * jacobian,
        probability=smoothers[-1],
    )


def walk_matrix(problem, weights, step):
    """Metropolis' walk on the graph of sources, (n_sources, n_sources), from its definition."""
    n_sources = problem.n_sources
    joined = np.eye(n_sources, dtype=bool)
    for source, row in enumerate(problem.neighbours):
        joined[source, row[row >= 0]] = True
    distance = np.linalg.norm(problem.source_pos[:, None] - problem.source_pos, axis=2)
    proposal = np.where(joined, np.exp(-(distance**2) / (2 * step**2)), 0.0)
    proposal /= proposal.sum(axis=1, keepdims=True)
    walk = np.zeros((n_sources, n_sources))
    for u in range(n_sources):
        for v in np.flatnonzero(joined[u]):
            if v != u:
                forward, backward = weights[u] * proposal[u, v], weights[v] * proposal[v, u]
                accepted = 1.0 if backward >= forward else backward / forward
                walk[u, v] = proposal[u, v] * accepted
        walk[u, u] = 1 - walk[u].sum()
    return walk


def toy_one(n_orient=3):
    """Twelve places on a ring, seven samples, at most one dipole: 79,537 trajectories."""
    model = DynamicDipoles(
        birth_prob=0.25,
        death_prob=0.15,
        max_dipoles=1,
        moment_std=1e-8,
        moment_persistence=0.8,
        noise_std=1.0,
    )
    angle = 2 * np.pi * np.arange(12) / 12
    pos = 0.05 * np.stack([np.cos(angle), np.sin(angle), 0.1 * np.sin(2 * angle)], axis=1)
    places = np.full((7, 1), -1)
    is_new = np.zeros((7, 1), bool)
    places[2:5] = 4
    is_new[2] = True
    gain, seed = {1: (0.95, 5), 3: (0.55, 6)}[n_orient]
    truth = (places, is_new)
    return _toy(model, pos, 8, n_orient, truth, gain, seed), model


def toy_two(n_orient=1):
    """Five places, five samples, at most two dipoles: 33,481 trajectories."""
    model = DynamicDipoles(
        birth_prob=0.4,
        death_prob=0.2,
        max_dipoles=2,
        moment_std=1e-8,
        moment_persistence=0.7,
        noise_std=1.0,
        location_prior=np.array([1.0, 2.0, 1.0, 0.5, 1.5]),
    )
    angle = 2 * np.pi * np.arange(5) / 5
    pos = 0.04 * np.stack([np.cos(angle), np.sin(angle), 0.1 * angle], axis=1)
    places = np.array([[-1, -1], [1, -1], [1, 3], [1, 3], [-1, 3]])
    is_new = np.zeros((5, 2), bool)
    is_new[1, 0] = is_new[2, 1] = True
    gain, seed = {1: (0.9, 16), 3: (0.55, 17)}[n_orient]
    truth = (places, is_new)
    return _toy(model, pos, 6, n_orient, truth, gain, seed), model


def toy_walk(n_orient=1):
    """Four places on a line, four samples, one dipole at most that walks: 295 trajectories."""
    model = DynamicDipoles(
        birth_prob=0.4,
        death_prob=0.2,
        max_dipoles=1,
        moment_std=1e-8,
        moment_persistence=0.7,
        noise_std=1.0,
        motion=0.01,
        location_prior=np.array([1.0, 2.0, 1.0, 0.5]),
    )
    pos = 0.01 * np.arange(4)[:, None] * np.array([1.0, 0.0, 0.0])
    places = np.array([[1], [1], [2], [2]])
    is_new = np.array([[True], [False], [False], [False]])
    line = np.abs(np.subtract.outer(np.arange(4), np.arange(4))) == 1
    gain, seed = {1: (0.9, 14), 3: (0.5, 19)}[n_orient]
    truth = (places, is_new)
    return _toy(model, pos, 6, n_orient, truth, gain, seed, line), model


def _toy(model, pos, n_channels, n_orient, truth, gain, seed, adjacency=None):
    """Lead fields of near places resemble each other; data of one trajectory, unit noise.

    `gain` is the field of one component of standard deviation `moment_std` in one channel.
    """
    places, is_new = truth
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(pos[:, None] - pos, axis=2)
    kernel = np.exp(-0.5 * (distance / 0.03) ** 2) + 1e-9 * np.eye(len(pos))
    white = rng.standard_normal((n_channels, len(pos), n_orient))
    scale = gain / model.moment_std
    lead_field = scale * np.einsum("ij,rjd->rid", np.linalg.cholesky(kernel), white)
    data = rng.standard_normal((n_channels, len(places)))
    moment = np.zeros((places.shape[1], n_orient))
    for t, (held, new) in enumerate(zip(places, is_new, strict=True)):
        keep = np.where(new, 0.0, model.moment_persistence)[:, None]
        innovation = rng.standard_normal(moment.shape)
        moment = keep * moment + np.sqrt(1 - keep**2) * model.moment_std * innovation
        for slot in np.flatnonzero(held >= 0):
            data[:, t] += lead_field[:, held[slot]] @ moment[slot]
    return Problem.from_arrays(
        data, lead_field, pos, times=0.01 * np.arange(len(places)), adjacency=adjacency
    )


class _Sensors:
    """One step of a Kalman filter for many trajectories at a time; an empty slot has variance 0."""

    def __init__(self, lead_field, moment_std, noise_std, persistence):
        self.lead_field = lead_field
        self.moment_std = moment_std
        self.persistence = persistence
        self.noise_cov = np.diag(np.broadcast_to(noise_std, lead_field.shape[:1]) ** 2.0)

    def nobody(self, n, n_slots):
        size = n_slots * self.lead_field.shape[2]
        return np.zeros((n, size)), np.zeros((n, size, size))

    def keep(self, places, is_new):
        """Diagonal of the transition matrix: (n, size)."""
        survives = (places >= 0) & ~is_new
        return np.repeat(self.persistence * survives, self.lead_field.shape[2], axis=1)

    def predict(self, mean, cov, places, is_new):
        keep = self.keep(places, is_new)
        alive = np.repeat(places >= 0, self.lead_field.shape[2], axis=1)
        cov = keep[:, :, None] * cov * keep[:, None, :]
        index = np.arange(mean.shape[1])
        cov[:, index, index] += alive * self.moment_std**2 * (1 - keep**2)
        return keep * mean, cov

    def step(self, mean, cov, places, is_new, sample):
        """Filtered mean and covariance, and the log density of the sample given those before."""
        parts = [
            self._step(*(array[i : i + CHUNK] for array in (mean, cov, places, is_new)), sample)
            for i in range(0, len(mean), CHUNK)
        ]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _step(self, mean, cov, places, is_new, sample):
        mean, cov = self.predict(mean, cov, places, is_new)
        field = np.moveaxis(self.lead_field, 0, 2)[places]  # (n, n_slots, d, rank)
        field = np.where((places >= 0)[:, :, None, None], field, 0.0)
        field = field.reshape(len(mean), -1, len(sample)).swapaxes(1, 2)
        innovation = sample - np.einsum("nrx,nx->nr", field, mean)
        cross = cov @ field.swapaxes(1, 2)
        innovation_cov = field @ cross + self.noise_cov
        gain = np.linalg.solve(innovation_cov, cross.swapaxes(1, 2)).swapaxes(1, 2)
        weighted = np.linalg.solve(innovation_cov, innovation[:, :, None])[:, :, 0]
        _, log_det = np.linalg.slogdet(innovation_cov)
        distance = np.sum(innovation * weighted, axis=1)
        log_density = -0.5 * (distance + log_det + len(sample) * np.log(2 * np.pi))
        mean = mean + np.einsum("nxr,nr->nx", gain, innovation)
        return mean, cov - gain @ cross.swapaxes(1, 2), log_density


def _successors(before, birth_prob, death_prob, weights, walk):
    """What can follow some places: (n, n_slots) places, is_new, and (n,) log probabilities."""
    alive = [slot for slot, place in enumerate(before) if place >= 0]
    found = []
    for survives in itertools.product([False, True], repeat=len(alive)):
        survivors = list(itertools.compress(alive, survives))
        dead = len(alive) - len(survivors)
        log_fate = dead * np.log(death_prob) + len(survivors) * np.log1p(-death_prob)
        steps = [np.flatnonzero(walk[before[slot]]) for slot in survivors]
        for targets in itertools.product(*steps):
            after = np.full(len(before), -1)
            log_prob = log_fate
            for slot, target in zip(survivors, targets, strict=True):
                after[slot] = target
                log_prob += np.log(walk[before[slot], target])
            nobody_new = np.zeros(len(before), bool)
            if len(alive) == len(before):
                found.append((after, nobody_new, log_prob))
                continue
            found.append((after, nobody_new, log_prob + np.log1p(-birth_prob)))
            is_free = (weights > 0) & ~np.isin(np.arange(len(weights)), after)
            slot = int(np.flatnonzero(after < 0)[0])
            for place in np.flatnonzero(is_free):
                born, is_new = after.copy(), nobody_new.copy()
                born[slot], is_new[slot] = place, True
                share = weights[place] / weights[is_free].sum()
                found.append((born, is_new, log_prob + np.log(birth_prob * share)))
    places, is_new, log_prob = zip(*found, strict=True)
    return np.array(places), np.array(is_new), np.array(log_prob)


def _filter_tree(every, sensors, data):
    """Filtered mean and covariance of each node, and log density of the data up to it."""
    moments = sensors.nobody(1, every.places.shape[2])
    total = np.zeros(1)
    filtered, totals = [], []
    for t, level in enumerate(every.levels):
        mean, cov = (array[level.parent] for array in moments)
        *moments, log_density = sensors.step(mean, cov, level.places, level.is_new, data[:, t])
        total = total[level.parent] + log_density
        filtered.append(tuple(moments))
        totals.append(total)
    return filtered, totals


def _smoothed_means(every, filtered, sensors):
    """Means of the moments given all samples and a trajectory, (n_traj, n_times, size): RTS."""
    n_times = every.places.shape[1]
    later = filtered[-1][0][every.nodes[:, -1]]
    means = [later]
    for t in range(n_times - 2, -1, -1):
        mean, cov = (array[every.nodes[:, t]] for array in filtered[t])
        places, is_new = every.places[:, t + 1], every.is_new[:, t + 1]
        predicted_mean, predicted_cov = sensors.predict(mean, cov, places, is_new)
        # An empty slot has no moment: any variance serves to invert, nothing is multiplied by it.
        index = np.arange(mean.shape[1])
        predicted_cov[:, index, index] += np.repeat(places < 0, sensors.lead_field.shape[2], axis=1)
        correction = np.linalg.solve(predicted_cov, (later - predicted_mean)[:, :, None])[:, :, 0]
        later = mean + np.einsum("nxy,ny->nx", cov, sensors.keep(places, is_new) * correction)
        means.insert(0, later)
    return np.stack(means, axis=1)


def _count(level):
    return np.sum(level.places >= 0, axis=1)


def _numbers(levels, weights):
    size = levels[0].places.shape[1] + 1
    return np.stack(
        [np.bincount(_count(x), w, minlength=size) for x, w in zip(levels, weights, strict=True)]
    )


def _intensity(levels, weights, n_sources):
    pairs = zip(levels, weights, strict=True)
    return np.stack([_at_places(w, x.places, None, n_sources) for x, w in pairs])


def _at_places(weights, places, values, n_sources):
    """Sum weights (n,), times values (n, n_slots d) if any, over the places (n, n_slots)."""
    n, slot = np.nonzero(places >= 0)
    if values is None:
        return np.bincount(places[n, slot], weights[n], minlength=n_sources)
    values = values.reshape(*places.shape, -1)
    total = np.zeros((n_sources, values.shape[2]))
    np.add.at(total, places[n, slot], weights[n, None] * values[n, slot])
    return total


def _birth_and_place(every, weights, n_sources):
    n_times = every.places.shape[1]
    last = n_times - 1 - np.argmax(every.is_new[:, ::-1], axis=1)  # (n, n_slots): newest birth
    n, slot = np.nonzero(every.places[:, -1] >= 0)
    joint = np.zeros((n_times, n_sources))
    np.add.at(joint, (last[n, slot], every.places[n, -1, slot]), weights[n])
    return joint


def _log_sum_exp(values):
    top = values.max()
    return top + np.log(np.sum(np.exp(values - top)))
