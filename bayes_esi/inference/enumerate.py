"""Exact posterior of static dipoles on small grids: every set of places, scales by quadrature.

    p(c | data)  =  prior(c) integral prior(s) p(data | c, s) ds  /  p(data)

for every set c of at most `max_dipoles` places and the unknown log scales s (moment, and noise
of each channel group). With field Gram matrix A = V diag(l) V' of the set at given noise
precisions and data Gram matrix M (symbols as in `models.dipole_gram`), the likelihood at
*every* moment precision delta costs O(d k):

    log p(data | c, s) = log_p0 - T/2 sum_i log(1 + l_i / delta) + 1/2 sum_i m_i / (l_i + delta)

with m_i = (V'MV)_ii. With one noise group, A is proportional to the noise precision, so one
eigendecomposition serves all scales of a set; with several it takes one for each noise node.

Each set has a box of log scales of its own, found by branch and bound: cells of a uniform grid
are dropped when they are so far below the best that not even the largest rise within a
cell makes up for it, and so are sets. What is left is integrated by Gauss-Legendre quadrature,
which converges geometrically for these analytic integrands, whether or not the mass leans on
a prior bound; nodes are added to a set until its probability stands still.

Draws are independent: a set by its probability, then one log scale after the other from
the inverse of its conditional distribution function, the log density being interpolated
through the quadrature nodes.

Cost O(sum_k C(n_sources, k) ((d k)^2 rank + (d k)^3 + n_nodes d k)), all in float64 NumPy.

References: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model);
Berrut, Trefethen 2004, doi:10.1137/S0036144502417715 (barycentric interpolation).
"""

import itertools
import math
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import logsumexp

from ..core.drive import progress_bar
from ..core.status import Status
from ..core.types import Float
from ..models.scale_prior import LogUniformScale
from .dipole_target import Dipoles

__all__ = ["Exact", "run"]

# Sets and cells this far below the best, in nats, hold nothing that double precision can see.
_NEGLIGIBLE_SET = 40.0
_NEGLIGIBLE_CELL = 28.0
# Cells of each log scale in the search for the boxes, by the number of unknown scales.
_N_CELLS = {1: 32, 2: 16, 3: 8}
_FEWEST_CELLS = 6
# Nodes of each log scale where the quadrature starts, and by how much grids grow.
_N_NODES = 12
_GROWTH = 1.5
# Probability that may go astray between the last two quadratures, all sets together.
_TOLERANCE = 1e-7
# Terms of the likelihood that one quadrature may take: a few minutes on one core.
_MAX_TERMS = 5e10
# Values held at a time: fits the cache of a core.
_CHUNK = 2**17
# Nodes of the grid through which draws are interpolated: the log density, which they need, is
# far smoother than the density, which the quadrature needs.
_MAX_TABLE = 2**15
# Points of the mesh on which conditional distribution functions are inverted.
_N_MESH = 2048
# A density below exp(-this) of its peak bounds the support of a prior.
_SUPPORT_DEPTH = 40.0


class Exact(NamedTuple):
    """The exact posterior."""

    n_dipoles_pmf: Float[np.ndarray, " max_dipoles+1"]
    intensity: Float[np.ndarray, " n_sources"]  # probability that a place holds a dipole
    log_evidence: float  # in whitened units
    draws: Dipoles  # independent, stacked (n_draws, ...)
    trace: dict
    status: Status


class Sets(NamedTuple):
    """Sets of one size."""

    places: np.ndarray  # (n_sets, k)
    log_prior: np.ndarray  # (n_sets,)
    boxes: np.ndarray  # (n_sets, n_scales, 2) ends of each log scale
    spectrum: tuple | None  # l and m at unit noise precision, (n_sets, d k) each: one group only


def run(key, target, options, *, progress, description) -> Exact:
    """Sum over all sets of places and integrate over the unknown scales.

    Parameters
    ----------
    key : PRNG key
        For the draws; nothing else is random.
    target : Target
        Its `prior` is the law; its `reference` has no part.
    options : dict
        `n_draws`, and `max_sets`, above which the enumeration is refused.
    progress : bool
    description : str
        Label of the progress bar.

    Returns
    -------
    Exact
        Its trace holds `n_sets`, `n_sets_kept` (within 40 nats of the evidence), `n_nodes` (of
        each unknown log scale, at the most) and `log_evidence_change` (by the last refinement
        of each set, in nats: far above the error that is left).

    Raises
    ------
    ValueError
        If there are more sets than `max_sets`, or the scales take too many nodes.
    """
    gram, prior = _as_numpy(target.gram), target.prior
    n_sets = _count_sets(prior)
    if n_sets > options["max_sets"]:
        raise ValueError(
            f"method='enumerate' would visit {n_sets:,} sets of places, more than "
            f"max_sets={options['max_sets']:,}; use method='smc', a coarser grid or a smaller "
            "max_dipoles."
        )
    family = _all_sets(gram, prior)
    with progress_bar(progress, description) as update:
        if any(not scale.is_known for scale in prior.scales):
            family = _zoom(gram, prior, family, update)
        log_mass, n_nodes, change = _integrate(gram, prior, family, update)
    log_evidence = float(logsumexp(np.concatenate(log_mass)))
    if not np.isfinite(log_evidence):
        raise ValueError(
            "method='enumerate' found no set with a finite likelihood: look for extreme values in "
            "data or lead field."
        )
    probability = [np.exp(mass - log_evidence) for mass in log_mass]
    pmf, intensity = np.zeros(prior.max_dipoles + 1), np.zeros(target.gram.n_sources)
    for sets, share in zip(family, probability, strict=True):
        pmf[sets.places.shape[1]] += share.sum()
        np.add.at(intensity, sets.places, share[:, None])
    trace = {
        "n_sets": np.asarray(n_sets),
        "n_sets_kept": np.sum(np.concatenate(log_mass) > log_evidence - _NEGLIGIBLE_SET),
        "n_nodes": np.asarray(n_nodes),
        "log_evidence_change": np.asarray(change),
    }
    draws = _draw(key, target, gram, family, probability, n_nodes, options["n_draws"])
    return Exact(pmf, intensity, log_evidence, draws, trace, Status.OK)


def _as_numpy(gram):
    """The factors of the Gram blocks in double precision, whatever JAX computes in."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64 if leaf.dtype.kind == "f" else None),
        jax.tree.map(np.asarray, gram),
    )


def _places_and_sizes(prior):
    places = np.flatnonzero(np.isfinite(np.asarray(prior.log_place)))
    sizes = np.flatnonzero(np.isfinite(np.asarray(prior.log_number)))
    return places, [int(k) for k in sizes if k <= len(places)]


def _count_sets(prior):
    places, sizes = _places_and_sizes(prior)
    return sum(math.comb(len(places), k) for k in sizes)


def _all_sets(gram, prior):
    """List every set of places that the prior allows, by size."""
    places, sizes = _places_and_sizes(prior)
    log_place = np.asarray(prior.log_place, np.float64)
    log_number = np.asarray(prior.log_number, np.float64)
    box = np.array([_support(scale) for scale in prior.scales])
    family = []
    for k in sizes:
        n_sets = math.comb(len(places), k)
        flat = itertools.chain.from_iterable(itertools.combinations(places, k))
        members = np.fromiter(flat, np.int32, n_sets * k).reshape(n_sets, k)
        log_prior = log_number[k] + log_place[members].sum(axis=1)
        boxes = np.broadcast_to(box, (n_sets, *box.shape))
        spectrum = None
        if gram.n_groups == 1:
            # The lead fields of a batch fill about a chunk.
            batch = max(1, 4 * _CHUNK // ((1 + k) * gram.n_orient * gram.field.shape[2]))
            parts = [
                _spectrum(gram, members[start : start + batch], np.ones((1, 1, 1)))
                for start in range(0, n_sets, batch)
            ]
            spectrum = tuple(np.concatenate(part)[:, 0] for part in zip(*parts, strict=True))
        family.append(Sets(members, log_prior, boxes, spectrum))
    return family


def _support(scale):
    """Interval of a log scale outside which its prior is zero or negligible."""
    if scale.is_known:
        return float(scale.log_value), float(scale.log_value)
    if isinstance(scale, LogUniformScale):
        return float(scale.log_low), float(scale.log_high)
    draws = np.asarray(scale.sample(jax.random.key(0), 1000), np.float64)
    middle, spread = np.median(draws), max(np.ptp(draws), 1e-3)
    floor = _log_density(scale, draws).max() - _SUPPORT_DEPTH

    def end(sign):
        inside, outside = middle, middle + sign * spread
        while _log_density(scale, outside) > floor:
            inside, outside = outside, middle + 2 * (outside - middle)
        for _ in range(60):  # a bound of the law must be an end of the box: bisect for it
            centre = 0.5 * (inside + outside)
            is_in = _log_density(scale, centre) > floor
            inside, outside = (centre, outside) if is_in else (inside, centre)
        return float(inside)

    return end(-1), end(1)


def _log_density(scale, log_scales):
    """Log prior density of an array of one log scale."""
    log_scales = np.asarray(log_scales)
    # Few lengths, or every chunk would compile anew.
    length = 1 << max(0, log_scales.size - 1).bit_length()
    padded = np.resize(log_scales, length)
    return np.asarray(_density(scale, padded), np.float64)[: log_scales.size].reshape(
        log_scales.shape
    )


@jax.jit
def _density(scale, log_scales):
    return scale.log_density(log_scales)


def _spectrum(gram, members, weights):
    """Eigenvalues l of A, and the diagonal m of M in the eigenvectors.

    Parameters
    ----------
    gram : DipoleGram
    members : (n_sets, k) int
    weights : (n_sets or 1, n_nodes, n_groups)
        Noise precisions.

    Returns
    -------
    eigenvalues, power : (n_sets, n_nodes, d k)
    """
    n_sets, m = len(members), members.shape[1] * gram.n_orient
    shape = (n_sets, weights.shape[1], m)
    if m == 0:
        return np.zeros(shape), np.zeros(shape)
    field = gram.field[members].reshape(n_sets, m, -1)
    data = gram.projected_data[members].reshape(n_sets, m, gram.n_groups, -1)
    of_group = []
    for group in range(gram.n_groups):
        rows = np.ascontiguousarray(field[:, :, gram.row_group == group])
        of_group.append(rows @ rows.swapaxes(1, 2))
    eigenvalues, power = np.empty(shape), np.empty(shape)
    for node in range(shape[1]):
        by_group = weights[:, node].T[:, :, None, None]
        values, vectors = np.linalg.eigh(
            sum(weight * block for weight, block in zip(by_group, of_group, strict=True))
        )
        whole = sum(weight * data[:, :, g] for g, weight in enumerate(by_group))
        eigenvalues[:, node] = np.maximum(values, 0)
        power[:, node] = np.sum((vectors.swapaxes(1, 2) @ whole) ** 2, axis=2)
    return eigenvalues, power


def _log_likelihood(gram, sets, nodes):
    """Log likelihood of sets on a tensor grid of log scales, one grid for each set.

    Parameters
    ----------
    gram : DipoleGram
    sets : Sets
    nodes : list of (n_sets, n_nodes_i)
        Of the moment scale, then of the noise scale of each group.

    Returns
    -------
    (n_sets, n_nodes_0, n_nodes_1, ...)
    """
    n_sets = len(sets.places)
    shape = (n_sets, *[axis.shape[1] for axis in nodes])
    grids = [
        np.broadcast_to(_along(axis, i, gram.n_groups), (n_sets, *shape[2:]))
        for i, axis in enumerate(nodes[1:])
    ]
    weights = np.exp(-2 * np.stack(grids, axis=-1)).reshape(n_sets, -1, gram.n_groups)
    variance = np.exp(2 * nodes[0])[:, :, None]  # 1 / delta
    if sets.spectrum is None:
        eigenvalues, power = _spectrum(gram, sets.places, weights)
    else:
        eigenvalues, power = (part[:, None] for part in sets.spectrum)
        eigenvalues, power = eigenvalues * weights, power * weights**2
    log_det = np.zeros((n_sets, variance.shape[1], weights.shape[1]))
    trace = np.zeros_like(log_det)
    for i in range(eigenvalues.shape[2]):
        ratio = variance * eigenvalues[:, None, :, i]
        ratio += 1
        trace += power[:, None, :, i] / ratio
        log_det += np.log(ratio, out=ratio)
    alone = 0.5 * (
        np.log(weights / (2 * np.pi)) @ (gram.group_rank * gram.n_times) - weights @ gram.data_power
    )
    trace *= variance
    trace -= gram.n_times * log_det
    return (alone[:, None] + 0.5 * trace).reshape(shape)


def _along(values, axis, n_axes):
    """Give (n_sets, n) values a place among the axes of a tensor grid."""
    shape = [1] * n_axes
    shape[axis] = values.shape[1]
    return values.reshape(-1, *shape)


def _grid(prior, boxes, points, weights):
    """Nodes of each log scale, and log quadrature weights times prior density.

    Parameters
    ----------
    prior : DipolePrior
    boxes : (n_sets, n_scales, 2)
    points, weights : (n,)
        A rule on [-1, 1].

    Returns
    -------
    nodes, log_weights : lists of (n_sets, n), or (n_sets, 1) for a known scale
    """
    nodes, log_weights = [], []
    for i, scale in enumerate(prior.scales):
        low, high = boxes[:, i, :1], boxes[:, i, 1:]
        if scale.is_known:
            nodes.append(low)
            log_weights.append(np.zeros_like(low))
            continue
        nodes.append(low + 0.5 * (1 + points) * (high - low))
        log_weights.append(np.log(0.5 * weights * (high - low)) + _log_density(scale, nodes[-1]))
    return nodes, log_weights


def _visit(gram, prior, family, rule, update, stage):
    """Evaluate prior times likelihood times weights of every set at every node.

    Yields
    ------
    size : int
        Index of the sets in `family`.
    part : slice
        Of these sets.
    values : (n_part, n_nodes_0, ...)
        Logarithms.
    """
    n_free = sum(not scale.is_known for scale in prior.scales)
    n_nodes = len(rule[0]) ** n_free
    n_terms = n_nodes * sum(
        len(sets.places) * (1 + gram.n_orient * sets.places.shape[1]) for sets in family
    )
    total, n_done = sum(len(sets.places) for sets in family), 0
    if n_terms > _MAX_TERMS:
        raise ValueError(
            f"method='enumerate' would need {n_nodes:,} nodes in the unknown scales for each of "
            f"{total:,} sets of places; use method='smc', or give moment_std or noise_std."
        )
    step = max(1, _CHUNK // n_nodes)
    for size, sets in enumerate(family):
        for start in range(0, len(sets.places), step):
            part = slice(start, start + step)
            chunk = _subset(sets, part)
            nodes, log_weights = _grid(prior, chunk.boxes, *rule)
            values = _log_likelihood(gram, chunk, nodes)
            values += _along(chunk.log_prior[:, None], 0, len(nodes))
            for i, weight in enumerate(log_weights):
                values += _along(weight, i, len(nodes))
            n_done += len(values)
            update(n_done / total, stage=stage)
            yield size, part, values


def _zoom(gram, prior, family, update):
    """Drop sets, and shrink the boxes of the others, where the mass is negligible."""
    n_free = sum(not scale.is_known for scale in prior.scales)
    n_cells, finished, leader = _N_CELLS.get(n_free, _FEWEST_CELLS), [], -np.inf
    for zoom in itertools.count(1):
        upper = [np.empty(len(sets.places)) for sets in family]
        is_done = [np.empty(len(sets.places), bool) for sets in family]
        boxes, has_shrunk = [np.empty(sets.boxes.shape) for sets in family], False
        for n, part, values in _visit(
            gram, prior, family, _midpoint(n_cells), update, f"zoom {zoom}"
        ):
            old = family[n].boxes[part]
            slack = _largest_rise(gram, prior, old, n_cells)
            log_mass = logsumexp(values, axis=tuple(range(1, values.ndim)))
            leader = max(leader, np.max(log_mass - slack))
            upper[n][part] = log_mass + slack
            boxes[n][part] = new = _shrink(values, old, slack)
            shrunk = np.any(np.diff(new) < 0.8 * np.diff(old), axis=(1, 2))
            has_shrunk |= bool(np.any(shrunk))
            is_done[n][part] = ~shrunk & (slack < 1)
        family = [sets._replace(boxes=box) for sets, box in zip(family, boxes, strict=True)]
        hopeful = [bound >= leader - _NEGLIGIBLE_SET for bound in upper]
        rows = list(zip(family, hopeful, is_done, strict=True))
        finished += [_subset(sets, hope & done) for sets, hope, done in rows]
        family = [_subset(sets, hope & ~done) for sets, hope, done in rows]
        family = [sets for sets in family if len(sets.places)]
        if not family:
            return [sets for sets in finished if len(sets.places)]
        if not has_shrunk:
            n_cells = math.ceil(_GROWTH * n_cells)


def _largest_rise(gram, prior, boxes, n_cells):
    """Bound on the log likelihood's rise from the centre of a cell to anywhere within.

    A log likelihood of f Gaussian numbers falls by f/2 (exp(2 h) - 1 - 2 h) from its peak when
    all standard deviations are wrong by a factor exp(h); here h is half a cell.
    """
    width = (boxes[:, :, 1] - boxes[:, :, 0]) / n_cells  # zero for a known scale
    n_rows = np.array(
        [min(prior.max_dipoles * gram.n_orient, gram.group_rank.sum()), *gram.group_rank]
    )
    return (np.expm1(width) - width) @ (0.5 * gram.n_times * n_rows)


def _shrink(values, boxes, slack):
    """Boxes around the cells that may hold mass, with a cell to spare on each side."""
    boxes = boxes.copy()
    for i, n_cells in enumerate(values.shape[1:]):
        profile = values.max(axis=tuple(j for j in range(1, values.ndim) if j != i + 1))
        floor = profile.max(axis=1) - slack - _NEGLIGIBLE_CELL
        kept = profile >= floor[:, None]
        first = np.maximum(np.argmax(kept, axis=1) - 1, 0)
        spare = np.maximum(np.argmax(kept[:, ::-1], axis=1) - 1, 0)
        width = (boxes[:, i, 1] - boxes[:, i, 0]) / n_cells
        boxes[:, i, 0] += first * width
        boxes[:, i, 1] -= spare * width
    return boxes


def _integrate(gram, prior, family, update):
    """Quadrature with more and more nodes until the probability of every set stands still.

    Returns
    -------
    log_mass : list of (n_sets,)
        Log of prior times marginal likelihood.
    n_nodes : int
        Of the last quadrature.
    change : float
        Sum of the last changes of probability.
    """
    starts = np.cumsum([0, *[len(sets.places) for sets in family]])
    log_mass, settled, change = None, np.zeros(starts[-1], bool), 0.0
    n_nodes = _N_NODES
    while True:
        rest = [
            _subset(sets, ~settled[low:high])
            for sets, (low, high) in zip(family, itertools.pairwise(starts), strict=True)
        ]
        fresh = np.empty(np.sum(~settled))
        offsets = np.cumsum([0, *[len(sets.places) for sets in rest]])
        rule, stage = np.polynomial.legendre.leggauss(n_nodes), f"{n_nodes} nodes"
        for n, part, values in _visit(gram, prior, rest, rule, update, stage):
            mine = fresh[offsets[n] : offsets[n + 1]]
            mine[part] = logsumexp(values, axis=tuple(range(1, values.ndim)))
        if log_mass is None:
            log_mass = fresh
        else:
            old = log_mass[~settled]
            log_mass[~settled] = fresh
            total = logsumexp(log_mass)
            moved = np.abs(np.exp(fresh - total) - np.exp(old - total))
            order = np.argsort(moved)
            n_settled = np.searchsorted(np.cumsum(moved[order]), _TOLERANCE / 4)
            change += moved[order[:n_settled]].sum()
            settled[np.flatnonzero(~settled)[order[:n_settled]]] = True
        if np.all(settled) or all(scale.is_known for scale in prior.scales):
            return np.split(log_mass, starts[1:-1]), n_nodes, change
        n_nodes = math.ceil(_GROWTH * n_nodes)


def _midpoint(n_cells):
    """Centres of equal cells of [-1, 1], and their widths."""
    return (2 * np.arange(n_cells) + 1) / n_cells - 1, np.full(n_cells, 2 / n_cells)


def _subset(sets, index):
    spectrum = sets.spectrum and tuple(part[index] for part in sets.spectrum)
    return Sets(sets.places[index], sets.log_prior[index], sets.boxes[index], spectrum)


def _draw(key, target, gram, family, probability, n_nodes, n_draws) -> Dipoles:
    """Independent draws of the posterior."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    prior = target.prior
    share = np.concatenate(probability)
    picked = rng.choice(len(share), size=n_draws, p=share / share.sum())
    uniforms = rng.random((n_draws, len(prior.scales)))
    places = np.zeros((n_draws, prior.max_dipoles), np.int32)
    active = np.zeros((n_draws, prior.max_dipoles), bool)
    log_scales, value = np.empty((n_draws, len(prior.scales))), np.empty(n_draws)
    n_free = sum(not scale.is_known for scale in prior.scales)
    n_nodes = min(n_nodes, int(_MAX_TABLE ** (1 / max(n_free, 1)) + 1e-9))
    step = max(1, 32 * _CHUNK // max(n_nodes**n_free, _N_MESH))
    start = 0
    for sets in family:
        stop = start + len(sets.places)
        mine = np.flatnonzero((picked >= start) & (picked < stop))
        mine = mine[np.argsort(picked[mine], kind="stable")]  # draws of one set side by side
        for rows in np.array_split(mine, -(-len(mine) // step)) if len(mine) else []:
            found, which = np.unique(picked[rows] - start, return_inverse=True)
            log_scales[rows] = _draw_scales(
                gram, prior, _subset(sets, found), which, n_nodes, uniforms[rows]
            )
            chosen = _subset(sets, picked[rows] - start)
            size = chosen.places.shape[1]
            places[rows, :size], active[rows, :size] = chosen.places, True
            nodes = [log_scales[rows, i, None] for i in range(len(prior.scales))]
            value[rows] = _log_likelihood(gram, chosen, nodes).reshape(len(rows))
        start = stop
    dtype = target.gram.own_blocks.dtype
    return Dipoles(places, active, log_scales.astype(dtype), value.astype(dtype))


def _draw_scales(gram, prior, sets, which, n_nodes, uniforms):
    """Draw log scales, one after the other by inversion.

    Parameters
    ----------
    gram, prior
    sets : Sets
    which : (n_draws,) int
        The set that each draw belongs to.
    n_nodes : int
        Of each unknown scale.
    uniforms : (n_draws, n_scales)

    Returns
    -------
    (n_draws, n_scales)
    """
    rule = np.polynomial.legendre.leggauss(n_nodes)
    mesh = np.linspace(-1, 1, _N_MESH)
    to_mesh = _interpolation(*rule, mesh)
    nodes, log_weights = _grid(prior, sets.boxes, *rule)
    table = _log_likelihood(gram, sets, nodes)[which]
    boxes, log_weights = sets.boxes[which], [weight[which] for weight in log_weights]
    drawn = boxes[:, :, 0].copy()
    for i, scale in enumerate(prior.scales):
        if scale.is_known:
            table = table[:, 0]
            continue
        low, high = boxes[:, i, :1], boxes[:, i, 1:]
        log_density = table
        for j, weight in enumerate(log_weights[i + 1 :], start=1):
            log_density = log_density + _along(weight, j, table.ndim - 1)
        log_density = logsumexp(log_density, axis=tuple(range(2, table.ndim)))
        on_mesh = log_density @ to_mesh.T
        on_mesh += _log_density(scale, low + 0.5 * (1 + mesh) * (high - low))
        point = _invert(mesh, on_mesh, uniforms[:, i])
        drawn[:, i] = (low + 0.5 * (1 + point[:, None]) * (high - low))[:, 0]
        table = np.einsum("rn,rn...->r...", _interpolation(*rule, point), table)
    return drawn


def _interpolation(nodes, weights, points):
    """Matrix from values at Gauss-Legendre nodes to values at points: (n_points, n_nodes)."""
    barycentric = np.sqrt((1 - nodes**2) * weights) * (-1.0) ** np.arange(len(nodes))
    distance = points[:, None] - nodes
    # A point on a node: the tiny stand-in gives that node all of the weight.
    terms = barycentric / np.where(distance == 0, 1e-300, distance)
    return terms / terms.sum(axis=1, keepdims=True)


def _invert(mesh, log_density, uniform):
    """Points where distribution functions, one a row, reach given values."""
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    steps = 0.5 * (density[:, 1:] + density[:, :-1])
    cumulative = np.cumsum(steps, axis=1)
    level = uniform * cumulative[:, -1]
    cell = np.minimum(np.sum(cumulative <= level[:, None], axis=1), steps.shape[1] - 1)
    rows = np.arange(len(level))
    within = 1 - (cumulative[rows, cell] - level) / steps[rows, cell]
    return mesh[cell] + within * (mesh[1] - mesh[0])
