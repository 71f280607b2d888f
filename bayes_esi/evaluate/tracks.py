"""How far sets of places over time are from the truth, when even their number is unknown.

OSPA, the optimal sub-pattern assignment distance of order p with cut-off c. For sets X of m and Y
of n >= m places

    ospa(X, Y) = ( 1/n ( min over assignments sum_i min(|x_i - y_a(i)|, c)^p + c^p (n - m) ) )^(1/p)

and 0 for two empty sets. It is a metric between 0 and c: a dipole missed or invented costs as much
as one that is c away. `matched_distance` leaves number out: it is the mean distance of the
pairs of the best assignment, as papers on dipoles often have it, and no metric.

A set of places over time is a sequence with an (n, 3) array for each sample, in m; n may be 0.

Reference: Schuhmacher, Vo, Vo 2008, doi:10.1109/TSP.2008.920469.
"""

import numbers

import numpy as np

from ..core.checks import check_array, check_positive

__all__ = [
    "expected_ospa",
    "intensity_peaks",
    "matched_distance",
    "matched_distance_over_time",
    "number_error",
    "ospa",
    "ospa_over_time",
    "places_to_sets",
]

_ORDER, _CUTOFF = 1, 0.03
_RADIUS = 0.015


def ospa(found, truth, *, order=_ORDER, cutoff=_CUTOFF):
    """OSPA distance of two sets of places.

    Parameters
    ----------
    found, truth : (n, 3), (m, 3) array
        In m. Either may be empty.
    order : float
        p, at least 1: the larger, the more the worst pair counts.
    cutoff : float
        c in m: the price of a dipole too many or too few.

    Returns
    -------
    float
        In m, between 0 and `cutoff`. Cost O(max(n, m)^3).

    Raises
    ------
    ValueError
        If a set is not (n, 3) and finite, `order` is below 1, or `cutoff` is not positive.
    """
    order, cutoff = _check_metric(order, cutoff)
    return _ospa(_check_set("found", found), _check_set("truth", truth), order, cutoff)


def ospa_over_time(found, truth, *, order=_ORDER, cutoff=_CUTOFF):
    """OSPA distance at each sample.

    Parameters
    ----------
    found, truth : sequence of (n, 3) arrays
        One for each sample, in m.
    order, cutoff : float
        As for `ospa`.

    Returns
    -------
    (n_times,) array
        In m.

    Raises
    ------
    ValueError
        As for `ospa`, or if the sequences differ in length.
    """
    order, cutoff = _check_metric(order, cutoff)
    pairs = _pairs(found, truth)
    return np.array([_ospa(a, b, order, cutoff) for a, b in pairs])


def expected_ospa(places, source_pos, truth, *, order=_ORDER, cutoff=_CUTOFF):
    """Mean OSPA distance of trajectory draws at each sample: the error that the posterior expects.

    Parameters
    ----------
    places : (n_draws, n_times, n_slots) int
        Equally weighted draws; -1 for an empty slot.
    source_pos : (n_sources, 3) array
        In m.
    truth : sequence of (n, 3) arrays
        One for each sample, in m.
    order, cutoff : float
        As for `ospa`.

    Returns
    -------
    (n_times,) array
        In m. Cost O(n_slots^3) for each distinct set of places and sample.

    Raises
    ------
    ValueError
        As for `ospa_over_time`, or if `places` has another shape.
    """
    order, cutoff = _check_metric(order, cutoff)
    places = np.asarray(places)
    if places.ndim != 3 or places.dtype.kind not in "iu":
        raise ValueError(
            "places must be integers of shape (n_draws, n_times, n_slots), got "
            f"{places.dtype} of shape {places.shape}; flatten runs and draws into one axis."
        )
    source_pos = check_array("source_pos", source_pos, shape=(None, 3))
    _check_length("places", places.shape[1], truth)
    mean = np.zeros(places.shape[1])
    for t, there in enumerate(truth):
        there = _check_set(f"truth[{t}]", there)
        # A set has no order: draws that differ by slots alone are one.
        sets, counts = np.unique(np.sort(places[:, t], axis=1), axis=0, return_counts=True)
        distance = [_ospa(source_pos[held[held >= 0]], there, order, cutoff) for held in sets]
        mean[t] = counts @ np.array(distance) / counts.sum()
    return mean


def matched_distance(found, truth):
    """Mean distance of the pairs of the best assignment, whatever the numbers.

    Parameters
    ----------
    found, truth : (n, 3), (m, 3) array
        In m.

    Returns
    -------
    float
        In m; NaN where a set is empty, as there is no pair.

    Raises
    ------
    ValueError
        If a set is not (n, 3) and finite.
    """
    found, truth = _check_set("found", found), _check_set("truth", truth)
    if not len(found) or not len(truth):
        return float("nan")
    return float(np.mean(_assigned(_distances(found, truth))))


def matched_distance_over_time(found, truth):
    """`matched_distance` at each sample, for sequences of sets: (n_times,) in m."""
    return np.array([matched_distance(a, b) for a, b in _pairs(found, truth)])


def number_error(n_dipoles_pmf, n_dipoles):
    """Expected absolute error of the number of dipoles at each sample.

    Parameters
    ----------
    n_dipoles_pmf : (n_times, max_dipoles + 1) array
        Probability of each number.
    n_dipoles : (n_times,) int
        True number.

    Returns
    -------
    (n_times,) array
        Sum over k of P(k) |k - n_dipoles|.

    Raises
    ------
    ValueError
        If the shapes differ in n_times.
    """
    pmf = check_array("n_dipoles_pmf", n_dipoles_pmf, ndim=2)
    n_dipoles = check_array("n_dipoles", n_dipoles, shape=(len(pmf),))
    return np.sum(pmf * np.abs(np.arange(pmf.shape[1]) - n_dipoles[:, None]), axis=1)


def intensity_peaks(intensity, n_dipoles, source_pos, *, radius=_RADIUS):
    """Places of the dipoles at each sample, as the peaks of the intensity.

    The ball of `radius` around a source that holds the largest expected number of dipoles is
    found, its centre of mass is a dipole, the intensity in the ball is taken out, and so on,
    `n_dipoles` times or until nothing is left.

    Parameters
    ----------
    intensity : (n_times, n_sources) array
        Expected number of dipoles at each place.
    n_dipoles : (n_times,) int
        How many to find: the most probable number, for example.
    source_pos : (n_sources, 3) array
        In m.
    radius : float
        In m: about the uncertainty of a place, less than the distance of two dipoles.

    Returns
    -------
    list of (n, 3) arrays
        In m, the strongest peak first.

    Raises
    ------
    ValueError
        If shapes do not fit or `radius` is not positive.

    Notes
    -----
    Cost O(n_sources n_near) for each dipole and sample.
    """
    from scipy.sparse import coo_array
    from scipy.spatial import cKDTree

    source_pos = check_array("source_pos", source_pos, shape=(None, 3))
    intensity = check_array("intensity", intensity, shape=(None, len(source_pos)))
    n_dipoles = np.asarray(n_dipoles)
    if n_dipoles.shape != (len(intensity),):
        raise ValueError(
            f"n_dipoles must have shape ({len(intensity)},), one number for each sample, got "
            f"{n_dipoles.shape}."
        )
    tree = cKDTree(source_pos)
    near = tree.sparse_distance_matrix(
        tree, check_positive("radius", radius), output_type="ndarray"
    )
    is_near = coo_array(
        (np.ones(len(near)), (near["i"], near["j"])), shape=(len(source_pos),) * 2
    ).tocsr()
    found = []
    for density, number in zip(intensity, n_dipoles, strict=True):
        density, peaks = density.copy(), []
        for _ in range(int(number)):
            mass = is_near @ density
            centre = int(np.argmax(mass))
            if mass[centre] <= 0:
                break
            ball = is_near.indices[is_near.indptr[centre] : is_near.indptr[centre + 1]]
            peaks.append(density[ball] @ source_pos[ball] / density[ball].sum())
            density[ball] = 0.0
        found.append(np.array(peaks).reshape(-1, 3))
    return found


def places_to_sets(places, source_pos):
    """Sets of places of a trajectory.

    Parameters
    ----------
    places : (n_times, n_slots) int
        -1 for an empty slot.
    source_pos : (n_sources, 3) array
        In m.

    Returns
    -------
    list of (n, 3) arrays
        In m, one for each sample.
    """
    source_pos = np.asarray(source_pos)
    return [source_pos[held[held >= 0]] for held in np.asarray(places)]


def _ospa(found, truth, order, cutoff):
    few, many = sorted((len(found), len(truth)))
    if not many:
        return 0.0
    cost = (many - few) * cutoff**order
    if few:
        cost += np.sum(_assigned(np.minimum(_distances(found, truth), cutoff) ** order))
    return float((cost / many) ** (1 / order))


def _distances(found, truth):
    return np.linalg.norm(found[:, None] - truth, axis=2)


def _assigned(cost):
    """Costs of the pairs of the best assignment."""
    from scipy.optimize import linear_sum_assignment  # a tenth of the time to import the package

    return cost[linear_sum_assignment(cost)]


def _pairs(found, truth):
    _check_length("found", len(found), truth)
    return [
        (_check_set(f"found[{t}]", a), _check_set(f"truth[{t}]", b))
        for t, (a, b) in enumerate(zip(found, truth, strict=True))
    ]


def _check_length(name, n_times, truth):
    if n_times != len(truth):
        raise ValueError(f"{name} has {n_times} samples, but truth has {len(truth)}.")


def _check_set(name, value):
    value = np.asarray(value)
    if value.size == 0:
        return np.zeros((0, 3))
    return check_array(name, value, shape=(None, 3), remedy="A place is a row, in m.")


def _check_metric(order, cutoff):
    if not isinstance(order, numbers.Real) or not 1 <= order < np.inf:
        raise ValueError(f"order must be a finite number of at least 1, got {order!r}.")
    return float(order), check_positive("cutoff", cutoff, remedy="It is a distance in m.")
