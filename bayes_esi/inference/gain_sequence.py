"""The gains of a whole recording, forwards and backwards, within a memory limit.

Gains change until what is left to change, by geometric extrapolation, is below the tolerance in L
and in every predicted variance; from then on one gain serves. Transient gains, n_states x
n_channels each, are kept: once little is left to change, as single-precision differences to a
reference. If they do not fit in memory, gains are computed again from saved states of the
recursion: backwards, a stretch too long to hold is halved until it is not, which costs a factor
log2(length / room) in time and as many saved states in memory.

The frozen gain is certified by the Riccati equation on random combinations x of the
channels, P G' x = F P F' G' x - F L S^-1 L' F' G' x + Q G' x: P F' G' x is followed through the
recursion by its own definition, so that rounding in the gains shows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import chandrasekhar
from .sparse_product import multiply
from .stationary_prior import (
    apply_process_cov,
    apply_stationary_cov,
    count_terms,
    stationary_variance,
)

__all__ = ["Block", "GainSequence", "solve_gains"]

_N_PROBES = 4
_FEW_STATES = 1000
_ALIGNED = 8
# Gains this close to their limits make variances that differ from the steady ones by less than
# any Monte Carlo error.
LOOSE_TOL = 1e-5


class Block(NamedTuple):
    """Consecutive samples that share a gain."""

    gain: chandrasekhar.Gain
    start: int
    length: int


class GainSequence:
    """Gains for samples 1 to n_times; `solve_gains` makes it.

    Attributes
    ----------
    model : chandrasekhar.Model
    n_times : int
    n_terms : int
        Terms of the series of the stationary law.
    n_transient : int
        Samples before the gain is frozen; n_times if it never is.
    n_loose : int
        Samples before predicted variances are within 1e-5 of their limits.
    steady : chandrasekhar.Gain
        The last gain: frozen, or that of the last sample.
    predicted_var, filtered_var : (n_transient + 1, n_states) arrays or None
        Diagonals of P before and after each sample; the last row holds from then on.
    dare_residual : float
        Relative residual of the Riccati equation at the last gain.
    """

    def __init__(self, model, first, n_times, n_terms, tol, memory_limit):
        self.model, self.first, self.n_times = model, first, n_times
        self.n_terms, self.tol = n_terms, tol
        cov = first.predicted_cov
        self.room = max(int(memory_limit / (cov.size * cov.dtype.itemsize)), 1)
        self.n_transient, self.n_loose = n_times - 1, n_times
        self.steady = self.predicted_var = self.filtered_var = self.dare_residual = None
        self._steps, self._reference, self._bytes_left = [], None, memory_limit

    @property
    def is_stored(self):
        """Whether the transient gains fit in memory."""
        return self._steps is not None

    def keep(self, gain, left):
        """Store the next transient gain, of which `left` is yet to change, if memory lasts."""
        if self._steps is None:
            return
        cov = gain.predicted_cov
        if cov.dtype == jnp.float32:
            pass
        elif self._reference is not None:
            cov = _difference(cov, self._reference)
        elif left * float(jnp.finfo(jnp.float32).eps) < 0.01 * self.tol:
            self._reference = cov  # roundings of later differences stay below the tolerance
        self._steps.append((cov, gain.innovation_chol))
        self._bytes_left -= sum(x.size * x.dtype.itemsize for x in self._steps[-1])
        if self._bytes_left < 0:
            self._steps = self._reference = None

    def blocks(self):
        """Yield the blocks in the order of time."""
        for t, gain in enumerate(self._forwards()):
            yield Block(gain, t, 1)
        yield from self._steady_blocks()

    def reversed_blocks(self):
        """Yield the blocks backwards in time."""
        yield from reversed(self._steady_blocks())
        for t, gain in zip(range(self.n_transient - 1, -1, -1), self._backwards(), strict=True):
            yield Block(gain, t, 1)

    def _steady_blocks(self):
        """One long block, whose length changes seldom with the model, so that it compiles once."""
        start = min(-(-self.n_transient // _ALIGNED) * _ALIGNED, self.n_times - 1)
        singles = [Block(self.steady, t, 1) for t in range(self.n_transient, start)]
        return [*singles, Block(self.steady, start, self.n_times - start)]

    def _forwards(self):
        if self._steps is None:
            return self._recompute(self.first, self.n_transient)
        return map(self._restore, self._steps)

    def _backwards(self):
        if self._steps is None:
            return self._recompute_backwards(self.first, self.n_transient)
        return map(self._restore, reversed(self._steps))

    def _restore(self, kept):
        cov, chol = kept
        if self._reference is not None and cov.dtype == jnp.float32:
            cov = _sum(cov, self._reference)
        return chandrasekhar.Gain(cov, chol)

    def _step(self, state, t):
        return chandrasekhar.step(self.model, state, self.tol, compress=_compresses(t))[0]

    def _recompute(self, state, length, first=0):
        for i in range(length):
            yield chandrasekhar.gain(state)
            if i + 1 < length:
                state = self._step(state, first + i)

    def _recompute_backwards(self, state, length, first=0):
        if length <= self.room:
            yield from reversed(list(self._recompute(state, length, first)))
            return
        half = length // 2
        middle = state
        for i in range(half):
            middle = self._step(middle, first + i)
        yield from self._recompute_backwards(middle, length - half, first + half)
        del middle
        yield from self._recompute_backwards(state, half, first)


def solve_gains(
    model,
    n_times,
    *,
    tol=None,
    memory_limit=6 * 2**30,
    with_var=True,
    keep=True,
    progress=lambda done: None,
):
    """Compute the gains for `n_times` samples from a stationary start.

    Parameters
    ----------
    model : chandrasekhar.Model
    n_times : int
    tol : float, optional
        Relative accuracy of gains and variances at which they are frozen; in single precision not
        below a few roundings. Default 1e-11 up to 1,000 states and 1e-8 beyond, where each
        tenfold may cost ten seconds and a gigabyte.
    memory_limit : float
        Bytes for transient gains, and before them for the series of the stationary law.
    with_var : bool
        Follow predicted and filtered variances, which needs the diagonal of the stationary law.
    keep : bool
        Keep what filter and smoother of a recording need; without it, the last gain only.
    progress : callable
        Called with the share of the work done, 0 to 1.

    Returns
    -------
    GainSequence

    Raises
    ------
    ValueError
        If the transition forgets too slowly for a stationary law to be summed.
    """
    system = model.dynamics
    n_channels, n_states = model.lead_field.shape
    if tol is None:
        tol = 1e-11 if n_states <= _FEW_STATES else 1e-8
    tol = max(tol, 30 * float(jnp.finfo(model.lead_field.dtype).eps))
    n_terms = count_terms(system, 0.1 * tol)
    probes = np.random.default_rng(0).standard_normal((n_channels, _N_PROBES))
    probes = jnp.asarray(probes, model.lead_field.dtype)
    combined, shifted = _probe(model, probes)
    right = jnp.concatenate([model.lead_field.T, shifted], axis=1)
    covs = apply_stationary_cov(system, right, n_terms, memory_limit / 3)
    progress(0.3)
    first_var = None
    if with_var:
        first_var = stationary_variance(system, n_terms, 0.1 * tol, memory_limit / 3)
    progress(0.7)
    state = chandrasekhar.init(model, covs[:, :n_channels], first_var)
    follow = covs[:, n_channels:]
    del covs, right
    gains = GainSequence(model, state, n_times, n_terms, tol, memory_limit)
    predicted, filtered, last, left = [], [], np.zeros(2), np.inf
    for t in range(n_times):
        gain = chandrasekhar.gain(state)
        if with_var and not keep:
            predicted, filtered = [], []
        if with_var:
            predicted.append(np.asarray(state.predicted_var))
            filtered.append(np.asarray(state.filtered_var))
        if t == gains.n_transient:
            break
        follow = _follow(follow, state.increment, shifted)
        if keep:
            gains.keep(gain, left)
        state, info = chandrasekhar.step(model, state, tol, compress=_compresses(t))
        change = np.array([info.change_of_cov, info.change_of_var])
        left = _left_to_change(change, last)
        last = change
        if left <= LOOSE_TOL and gains.n_loose == n_times:
            gains.n_loose = t + 1
        if left <= tol:
            gains.n_transient = t + 1
    gains.steady = gain
    gains.dare_residual = float(_riccati_residual(model, gain, probes, combined, shifted, follow))
    if with_var:
        gains.predicted_var, gains.filtered_var = np.stack(predicted), np.stack(filtered)
    progress(1.0)
    return gains


def _compresses(t):
    """Dropping directions costs as much as half a step: seldom enough."""
    return t % 4 == 0


@jax.jit
def _difference(cov, reference):
    return (cov - reference).astype(jnp.float32)


@jax.jit
def _sum(difference, reference):
    return reference + difference.astype(reference.dtype)


def _left_to_change(change, last):
    """What later steps add if changes go on shrinking as they last did."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(last > 0, change / last, 1.0)
    ratio = np.where(change > 0, np.clip(ratio, 0.0, 0.999), 0.0)
    return float(np.max(change * ratio / (1 - ratio)))


@jax.jit
def _probe(model, probes):
    combined = model.lead_field.T @ probes
    return combined, multiply(model.dynamics.transposed, combined)


@jax.jit
def _follow(follow, increment, shifted):
    seen = increment.T @ shifted.astype(increment.dtype)
    return follow - (increment @ seen).astype(follow.dtype)


@jax.jit
def _riccati_residual(model, gain, probes, combined, shifted, follow):
    lowered = jax.scipy.linalg.cho_solve(
        (gain.innovation_chol, True), gain.predicted_cov.T @ shifted
    )
    right = multiply(model.dynamics.transition, follow - gain.predicted_cov @ lowered)
    right = right + apply_process_cov(model.dynamics, combined)
    left = gain.predicted_cov @ probes
    return jnp.linalg.norm(right - left) / jnp.linalg.norm(left)
