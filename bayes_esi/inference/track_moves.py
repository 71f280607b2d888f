"""Metropolis-Hastings moves on sets of tracks and their parameters.

A step picks a kind of move at fixed odds, changes the tracks by integer operations, evaluates
the likelihood once, and accepts with the ratio of Metropolis, Hastings and Green. The target is a
law on sets (see `track_target`), counted by enumeration, so that no Jacobian enters. With n
tracks before the move, C, P and A of `track_proposal`, and log ratio = log q(back) - log q(forth):

    near          a static place takes 1, 2 or 4 random steps on the graph of sources; a random
                  walk is reversible under the degree, hence log deg(v) - log deg(v')
    far           a new place or path for a given life from the proposal: log P A - log P' A'
    birth         one track of law C P A into a free row; back, one of n + 1 tracks is picked:
                  -log (n + 1) - log C P A
    death         the reverse: log n + log C P A
    shift_birth   a symmetric step of the birth, or any birth before the death: 0 if static.
    shift_death   Walks: new samples are walked from the end that stays, and back, those given
                  up would be: log of the latter's probability less that of the former's
    shift_life    birth, death and path a symmetric step later: 0
    split         a track [b, d) becomes [b, s) and [s', d), s drawn uniformly, the gap s' - s zero
                  or uniform; static: either part, at even odds, gets a place that is the same, a
                  neighbour's, or from the proposal. With m pairs of tracks of which one ends
                  before the other begins afterwards,
                  log r - log m - log q(s, s') - log q(v1, v2 | v) + log n
    merge         the reverse, a pair drawn among m, the place of either at even odds (r = 1/2,
                  or 1 if they are the same); walks: the gap is walked from its left end
    exchange      static: two tracks exchange places, or deaths; walks: what follows a
                  sample of their common life: 0
    path          walks: a stretch is walked anew from its left end, or from its right end where it
                  begins the life; the log ratio is that of the stretches' probabilities
    parameters    a normal step of one unknown parameter: 0

A birth beyond the rows of the state is refused: the law is that of at most that many tracks.

Reference: Green 1995, doi:10.1093/biomet/82.4.711.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from ..core.types import Array, Bool, Float, Int
from .track_proposal import Proposal, anchored, draw_anchor, draw_life, log_life
from .track_target import Target, Tracks, evaluate, is_alive, log_posterior

__all__ = ["MOVES", "Counts", "odds", "step"]

# Birth and death, split and merge are each other's reverse and share their odds.
_ODDS = {
    "near": 0.2,
    "far": 0.1,
    "birth": 0.1,
    "death": 0.1,
    "shift_birth": 0.12,
    "shift_death": 0.12,
    "shift_life": 0.04,
    "split": 0.05,
    "merge": 0.05,
    "exchange": 0.04,
    "path": 0.25,
    "parameters": 0.15,
}
MOVES = tuple(_ODDS)

_SHIFTS = (1, 4, 16, 64)  # largest steps in time; one more choice is "anywhere"
_HOPS = (1, 2, 4)  # steps on the graph
_N_DRAWS = 10  # uniform numbers of a move, beside those of a walk


class Counts(NamedTuple):
    """Which of `MOVES` was tried, and whether it was accepted."""

    tried: Float[Array, " n_moves"]
    accepted: Float[Array, " n_moves"]


class Stretch(NamedTuple):
    """Samples [start, stop) of a row that a walk from `anchor` fills."""

    row: Int[Array, ""]
    start: Int[Array, ""]
    stop: Int[Array, ""]
    anchor: Int[Array, ""]
    is_mapped: Bool[Array, ""]  # whether the anchor is one of `draw_anchor`, to be forgotten


class Change(NamedTuple):
    """What a move proposes, before walks are drawn."""

    tracks: Tracks
    log_ratio: Float[Array, ""]  # without what the stretches contribute
    is_possible: Bool[Array, ""]
    forth: Stretch  # drawn by this move
    back: Stretch  # that the reverse move would draw, in the old tracks


def odds(target: Target, only=None):
    """Probability of each of `MOVES` under a target.

    Parameters
    ----------
    target : Target
    only : tuple of str, optional
        Kinds to restrict the moves to.

    Returns
    -------
    (n_moves,) NumPy array; zero for kinds that the model has no use for.
    """
    is_walking = target.prior.neighbours is not None
    idle = {"near"} if is_walking else {"path"}
    if not any(target.prior.is_unknown):
        idle.add("parameters")
    share = np.array(
        [0.0 if k in idle or (only and k not in only) else p for k, p in _ODDS.items()]
    )
    return share / share.sum()


def step(key, tracks: Tracks, target: Target, inverse_temperature, proposal: Proposal, only=None):
    """Propose one move of one chain, and accept or refuse it.

    Parameters
    ----------
    key : PRNG key
    tracks : Tracks
    target : Target
    inverse_temperature : scalar in [0, 1]
    proposal : Proposal
    only : tuple of str, optional
        Kinds to restrict the moves to.

    Returns
    -------
    Tracks, Counts
        Cost of one likelihood.
    """
    dtype, n_times = target.gram.field.dtype, target.gram.n_times
    is_walking = tracks.path is not None
    n_draws = _N_DRAWS + n_times * is_walking
    draws = jax.random.uniform(key, (n_draws + 2,), dtype)
    share = odds(target, only)
    kinds = np.flatnonzero(share)
    bounds = jnp.asarray(np.cumsum(share[kinds])[:-1], dtype)
    chosen = jnp.sum(draws[-1] >= bounds)
    branches = [_PROPOSERS[MOVES[kind]] for kind in kinds]
    change = jax.lax.switch(chosen, branches, draws[:_N_DRAWS], tracks, target, proposal)
    moved, forth, back = change.tracks, change.forth, change.back
    if is_walking:
        moved = _walk(draws[_N_DRAWS:n_draws], moved, forth, target)
    moved = _tidy(moved, n_times)
    log_ratio = change.log_ratio + _log_stretch(tracks, back, target, proposal)
    log_ratio = log_ratio - _log_stretch(moved, forth, target, proposal)

    moved = evaluate(target, moved)
    log_accept = log_ratio + log_posterior(target, moved, inverse_temperature)
    log_accept = log_accept - log_posterior(target, tracks, inverse_temperature)
    is_accepted = change.is_possible & (jnp.log(draws[-2]) < log_accept)
    tracks = jax.tree.map(lambda new, old: jnp.where(is_accepted, new, old), moved, tracks)
    tried = jnp.zeros(len(MOVES), dtype).at[jnp.asarray(kinds)[chosen]].set(1)
    return tracks, Counts(tried, tried * is_accepted)


def _near(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    n_hops = jnp.asarray(_HOPS)[_index(draws[1], len(_HOPS))]
    first = place = jnp.maximum(tracks.place[row], 0)
    for hop in range(max(_HOPS)):
        listed = target.neighbours[place]
        degree = jnp.sum(listed >= 0)  # padding comes last
        to = listed[_index(draws[2 + hop], jnp.maximum(degree, 1))]
        place = jnp.where((hop < n_hops) & (to >= 0), to, place).astype(first.dtype)
    degrees = jnp.sum(target.neighbours[jnp.stack([first, place])] >= 0, axis=1)
    log_degree = jnp.log(jnp.maximum(degrees, 1).astype(draws.dtype))
    moved = tracks._replace(place=tracks.place.at[row].set(place))
    is_possible = jnp.any(tracks.is_used) & (degrees[0] > 0)
    return _change(draws, moved, log_degree[0] - log_degree[1], is_possible)


def _far(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    birth, death = tracks.birth[row], tracks.death[row]
    time, place = draw_anchor(draws[1:3], proposal, birth, death)
    moved = _put(tracks, row, time, place)
    forth = _stretch(row, birth, death, time, is_mapped=True)
    back = _stretch(row, birth, death, birth, is_mapped=True)
    return _change(draws, moved, 0.0, jnp.any(tracks.is_used), forth, back)


def _birth(draws, tracks, target, proposal):
    row = jnp.argmin(tracks.is_used).astype(jnp.int32)
    n_used = jnp.sum(tracks.is_used)
    n_times = target.gram.n_times
    time, place = draw_anchor(draws[:2], proposal, jnp.zeros((), jnp.int32), n_times)
    birth, death = draw_life(draws[2:5], proposal, time)
    moved = _put(_live(tracks, row, birth, death), row, time, place)
    log_ratio = -jnp.log((n_used + 1).astype(draws.dtype)) - log_life(proposal, birth, death)
    forth = _stretch(row, birth, death, time, is_mapped=True)
    return _change(draws, moved, log_ratio, ~jnp.all(tracks.is_used), forth)


def _death(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    n_used = jnp.sum(tracks.is_used)
    birth, death = tracks.birth[row], tracks.death[row]
    moved = tracks._replace(is_used=tracks.is_used.at[row].set(False))
    log_ratio = jnp.log(jnp.maximum(n_used, 1).astype(draws.dtype))
    log_ratio = log_ratio + log_life(proposal, birth, jnp.maximum(death, birth + 1))
    back = _stretch(row, birth, death, birth, is_mapped=True)
    return _change(draws, moved, log_ratio, n_used > 0, None, back)


def _shift_birth(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    old, death = tracks.birth[row], tracks.death[row]
    new = _shifted(draws[1:4], old, jnp.zeros_like(old), death)
    moved = _live(tracks, row, new, death)
    is_possible = jnp.any(tracks.is_used) & (new >= 0) & (new < death)
    # Of the two stretches one is empty: that of the end which comes later.
    return _change(
        draws,
        moved,
        0.0,
        is_possible,
        _stretch(row, new, jnp.maximum(old, new), old),
        _stretch(row, old, jnp.maximum(old, new), new),
    )


def _shift_death(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    birth, old = tracks.birth[row], tracks.death[row]
    n_times = jnp.asarray(target.gram.n_times, old.dtype)
    new = _shifted(draws[1:4], old, birth + 1, n_times + 1)
    moved = _live(tracks, row, birth, new)
    is_possible = jnp.any(tracks.is_used) & (new > birth) & (new <= n_times)
    return _change(
        draws,
        moved,
        0.0,
        is_possible,
        _stretch(row, jnp.minimum(old, new), new, old - 1),
        _stretch(row, jnp.minimum(old, new), old, new - 1),
    )


def _shift_life(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    birth, death = tracks.birth[row], tracks.death[row]
    by = _jump(draws[1:3])
    moved = _live(tracks, row, birth + by, death + by)
    if tracks.path is not None:
        moved = moved._replace(path=moved.path.at[row].set(jnp.roll(tracks.path[row], by)))
    fits = (birth + by >= 0) & (death + by <= target.gram.n_times)
    return _change(draws, moved, 0.0, jnp.any(tracks.is_used) & fits)


def _split(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    other = jnp.argmin(tracks.is_used).astype(jnp.int32)
    birth, death, place = tracks.birth[row], tracks.death[row], tracks.place[row]
    stop = birth + 1 + _index(draws[1], jnp.maximum(death - birth - 1, 1))
    room = jnp.maximum(death - stop, 1)
    gap = jnp.where(draws[2] < 0.5, 0, _index(2 * draws[2] - 1, room))
    start = stop + gap
    moved = _live(_live(tracks, row, birth, stop), other, start, death)
    back = None
    if tracks.path is None:
        is_second = draws[3] < 0.5
        low, high = jnp.where(is_second, start, birth), jnp.where(is_second, death, stop)
        new = _place_of_part(draws[4:], place, low, high, target, proposal)
        places = jnp.where(is_second, jnp.stack([place, new]), jnp.stack([new, place]))
        moved = moved._replace(place=moved.place.at[jnp.stack([row, other])].set(places))
    else:
        moved = moved._replace(path=moved.path.at[other].set(tracks.path[row]))
        back = _stretch(row, stop, start, stop - 1)
    n_used = jnp.sum(tracks.is_used)
    is_possible = (n_used > 0) & ~jnp.all(tracks.is_used) & (death - birth > 1)
    log_ratio = _log_merge(moved, row, other) - _log_split(
        tracks, row, moved, row, other, target, proposal
    )
    return _change(draws, moved, log_ratio, is_possible, None, back)


def _merge(draws, tracks, target, proposal):
    n_tracks = tracks.is_used.shape[0]
    pairs = _successive(tracks)
    pair = _pick(draws[0], pairs.reshape(-1))
    row, other = pair // n_tracks, pair % n_tracks
    moved = _live(tracks, row, tracks.birth[row], tracks.death[other])
    moved = moved._replace(is_used=moved.is_used.at[other].set(False))
    forth = None
    if tracks.path is None:
        place = jnp.where(draws[1] < 0.5, tracks.place[row], tracks.place[other])
        moved = moved._replace(place=moved.place.at[row].set(place))
    else:
        stop, start = tracks.death[row], tracks.birth[other]
        later = jnp.arange(target.gram.n_times) >= start
        path = jnp.where(later, tracks.path[other], tracks.path[row])
        moved = moved._replace(path=moved.path.at[row].set(path))
        forth = _stretch(row, stop, start, stop - 1)
    log_ratio = _log_split(moved, row, tracks, row, other, target, proposal)
    log_ratio = log_ratio - _log_merge(tracks, row, other)
    return _change(draws, moved, log_ratio, jnp.any(pairs), forth)


def _exchange(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    other = _pick(draws[1], tracks.is_used & (jnp.arange(tracks.is_used.shape[0]) != row))
    both, swapped = jnp.stack([row, other]), jnp.stack([other, row])
    is_possible = jnp.sum(tracks.is_used) > 1
    low, high = jnp.max(tracks.birth[both]), jnp.min(tracks.death[both])
    ends = tracks._replace(death=tracks.death.at[both].set(tracks.death[swapped]))
    overlap = low < high
    if tracks.path is None:
        places = tracks._replace(place=tracks.place.at[both].set(tracks.place[swapped]))
        is_place = draws[2] < 0.5
        moved = jax.tree.map(lambda new, old: jnp.where(is_place, new, old), places, ends)
        return _change(draws, moved, 0.0, is_possible & (is_place | overlap))
    time = low + 1 + _index(draws[2], jnp.maximum(high - low - 1, 1))
    later = jnp.arange(target.gram.n_times) >= time
    paths = jnp.where(later, tracks.path[swapped], tracks.path[both])
    moved = ends._replace(path=tracks.path.at[both].set(paths))
    return _change(draws, moved, 0.0, is_possible & (high - low > 1))


def _path(draws, tracks, target, proposal):
    row = _pick(draws[0], tracks.is_used)
    birth, death = tracks.birth[row], tracks.death[row]
    start = birth + _index(draws[1], jnp.maximum(death - birth, 1))
    longest = jnp.asarray(_SHIFTS)[_index(draws[2], len(_SHIFTS))]
    stop = jnp.minimum(start + 1 + _index(draws[3], longest), death).astype(start.dtype)
    anchor = jnp.where(start > birth, start - 1, stop)
    stretch = _stretch(row, start, stop, anchor)
    is_possible = jnp.any(tracks.is_used) & ((start > birth) | (stop < death))
    return _change(draws, tracks, 0.0, is_possible, stretch, stretch)


def _parameters(draws, tracks, target, proposal):
    unknown = jnp.asarray(np.flatnonzero(target.prior.is_unknown))
    chosen = unknown[_index(draws[0], unknown.shape[0])]
    # Steps of several lengths: the spread of the chains may belong to several modes.
    size = proposal.parameter_steps[chosen] * jnp.exp(3 * draws[1] - 2)
    by = size * ndtri(jnp.clip(draws[2], 1e-7, 1 - 1e-7))
    moved = tracks._replace(parameters=tracks.parameters.at[chosen].add(by))
    return _change(draws, moved, 0.0, jnp.ones((), bool))


_PROPOSERS = {
    "near": _near,
    "far": _far,
    "birth": _birth,
    "death": _death,
    "shift_birth": _shift_birth,
    "shift_death": _shift_death,
    "shift_life": _shift_life,
    "split": _split,
    "merge": _merge,
    "exchange": _exchange,
    "path": _path,
    "parameters": _parameters,
}


def _change(draws, tracks, log_ratio, is_possible, forth=None, back=None):
    nothing = _stretch(0, 0, 0, 0)
    log_ratio = jnp.asarray(log_ratio, draws.dtype)
    return Change(
        tracks,
        log_ratio,
        is_possible,
        nothing if forth is None else forth,
        nothing if back is None else back,
    )


def _stretch(row, start, stop, anchor, *, is_mapped=False):
    numbers = [jnp.asarray(value, jnp.int32) for value in (row, start, stop, anchor)]
    return Stretch(*numbers, jnp.asarray(is_mapped))


def _index(draw, n):
    """Uniform on 0, ..., n - 1 from a uniform number."""
    return jnp.minimum((draw * n).astype(jnp.int32), jnp.asarray(n, jnp.int32) - 1)


def _pick(draw, mask):
    """A uniformly drawn true entry; 0 if there is none."""
    order = jnp.cumsum(mask.astype(jnp.int32))
    rank = _index(draw, jnp.maximum(order[-1], 1))
    return jnp.argmax(mask & (order == rank + 1)).astype(jnp.int32)


def _jump(draws):
    """A symmetric step in time."""
    longest = jnp.asarray(_SHIFTS)[_index(draws[0], len(_SHIFTS))]
    size = 2 * draws[1] - 1
    length = 1 + _index(jnp.abs(size), longest)
    return jnp.where(size < 0, -length, length).astype(jnp.int32)


def _shifted(draws, time, low, high):
    """A step of one end of a life, or any time in [low, high): symmetric both."""
    is_jump = draws[0] < 0.8
    anywhere = low + _index(draws[1], jnp.maximum(high - low, 1))
    return jnp.where(is_jump, time + _jump(draws[1:3]), anywhere).astype(time.dtype)


def _live(tracks, row, birth, death):
    return tracks._replace(
        birth=tracks.birth.at[row].set(birth),
        death=tracks.death.at[row].set(death),
        is_used=tracks.is_used.at[row].set(True),
    )


def _put(tracks, row, time, place):
    """Place a row; of a walk, the anchor only."""
    tracks = tracks._replace(place=tracks.place.at[row].set(place))
    if tracks.path is None:
        return tracks
    return tracks._replace(path=tracks.path.at[row, time].set(place))


def _tidy(tracks, n_times):
    """Write what no track uses in one way."""
    used = tracks.is_used
    birth, death = jnp.where(used, tracks.birth, 0), jnp.where(used, tracks.death, 0)
    tracks = tracks._replace(birth=birth, death=death)
    if tracks.path is None:
        return tracks._replace(place=jnp.where(used, tracks.place, -1))
    path = jnp.where(is_alive(tracks, n_times), tracks.path, -1)
    first = jnp.take_along_axis(path, jnp.clip(birth, 0, n_times - 1)[:, None], axis=1)[:, 0]
    return tracks._replace(path=path, place=jnp.where(used, first, -1))


def _walk(draws, tracks, stretch, target):
    """Fill a stretch by walks from its anchor to both sides."""
    prior, n_times = target.prior, target.gram.n_times
    path = tracks.path[stretch.row]
    anchor = jnp.clip(stretch.anchor, 0, n_times - 1)
    time = jnp.arange(n_times)
    cumulative = jnp.cumsum(jnp.exp(prior.log_step), axis=1)

    def one(place, now):
        draw, is_walked = now
        bounds = cumulative[place]
        to = prior.neighbours[place, jnp.sum(bounds <= draw * bounds[-1])]
        place = jnp.where(is_walked, to, place).astype(place.dtype)
        return place, place

    start = jnp.maximum(path[anchor], 0)
    _, later = jax.lax.scan(one, start, (draws, time > anchor))
    _, earlier = jax.lax.scan(one, start, (draws, time < anchor), reverse=True)
    walked = jnp.where(time > anchor, later, earlier)
    inside = (time >= stretch.start) & (time < stretch.stop) & (time != anchor)
    path = jnp.where(inside, walked, path)
    return tracks._replace(path=tracks.path.at[stretch.row].set(path))


def _log_stretch(tracks, stretch, target, proposal):
    """Log probability of what a stretch holds, had a move drawn it."""
    prior, n_times = target.prior, target.gram.n_times
    row, anchor = stretch.row, jnp.clip(stretch.anchor, 0, n_times - 1)
    if tracks.path is None:
        held = path = jnp.maximum(tracks.place[row], 0)
        walked = 0.0
    else:
        path = tracks.path[row]
        time = jnp.arange(n_times)
        before = jnp.where(time > anchor, jnp.roll(path, 1), jnp.roll(path, -1))
        inside = (time >= stretch.start) & (time < stretch.stop) & (time != anchor)
        steps = prior.log_walk(jnp.maximum(before, 0), path)
        walked = jnp.sum(jnp.where(inside, steps, 0.0))
        held = jnp.maximum(path[anchor], 0)
    weight = anchored(proposal, path, stretch.start, stretch.stop)
    mapped = prior.log_place[held] + jnp.log(jnp.where(stretch.is_mapped, weight, 1.0))
    return walked + jnp.where(stretch.is_mapped, mapped, 0.0)


def _successive(tracks):
    """Pairs (first, second) of tracks that could be one: the first ends before the second."""
    used = tracks.is_used[:, None] & tracks.is_used
    apart = ~jnp.eye(tracks.is_used.shape[0], dtype=bool)
    return used & apart & (tracks.death[:, None] <= tracks.birth)


def _log_merge(tracks, row, other):
    """Log probability of picking a pair, and the place that one part of it had."""
    n_pairs = jnp.maximum(jnp.sum(_successive(tracks)), 1).astype(tracks.parameters.dtype)
    if tracks.path is not None:
        return -jnp.log(n_pairs)
    is_same = tracks.place[row] == tracks.place[other]
    return jnp.where(is_same, 0.0, jnp.log(0.5)).astype(n_pairs.dtype) - jnp.log(n_pairs)


def _log_split(whole, whole_row, parts, row, other, target, proposal):
    """Log probability of splitting a track of `whole` into two of `parts`."""
    dtype = parts.parameters.dtype
    n_used = jnp.maximum(jnp.sum(whole.is_used), 1).astype(dtype)
    birth, stop = parts.birth[row], parts.death[row]
    start, death = parts.birth[other], parts.death[other]
    n_stops = jnp.maximum(death - birth - 1, 1).astype(dtype)
    flat = 0.5 / jnp.maximum(death - stop, 1).astype(dtype)
    log_q = jnp.log(flat + jnp.where(start == stop, 0.5, 0.0).astype(dtype))
    log_q = log_q - jnp.log(n_stops) - jnp.log(n_used)
    if parts.path is not None:
        return log_q
    place = whole.place[whole_row]
    first, second = parts.place[row], parts.place[other]
    laws = _law_of_part(place, second, start, death, target, proposal) * (first == place)
    laws += _law_of_part(place, first, birth, stop, target, proposal) * (second == place)
    return log_q + jnp.log(0.5 * laws)


def _place_of_part(draws, place, birth, death, target, proposal):
    """A place for one part of a track that is split."""
    place = jnp.maximum(place, 0)
    _, far = draw_anchor(draws[1:3], proposal, birth, death)
    listed = target.neighbours[place]
    degree = jnp.sum(listed >= 0)
    near = jnp.where(degree > 0, listed[_index(draws[3], jnp.maximum(degree, 1))], place)
    kind = _index(draws[0], 3)
    return jnp.where(kind == 0, place, jnp.where(kind == 1, near, far)).astype(place.dtype)


def _law_of_part(place, new_place, birth, death, target, proposal):
    """Probability of a draw of `_place_of_part`."""
    place, new_place = jnp.maximum(place, 0), jnp.maximum(new_place, 0)
    listed = target.neighbours[place]
    degree = jnp.sum(listed >= 0)
    is_same = place == new_place
    share = jnp.any(listed == new_place) / jnp.maximum(degree, 1)
    near = jnp.where(degree > 0, share, is_same)
    weight = proposal.cumulative_time[death] - proposal.cumulative_time[birth]
    far = anchored(proposal, new_place, birth, death) / jnp.where(weight > 0, weight, 1.0)
    far = jnp.exp(target.prior.log_place[new_place]) * far
    return (is_same.astype(far.dtype) + near.astype(far.dtype) + far) / 3
