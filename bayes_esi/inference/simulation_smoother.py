"""Smoothed means, unbiased posterior variances with their Monte Carlo error, and draws.

The error of the smoothed mean does not depend on the data, so series are drawn from the model
itself, with e = G err + v the innovation of the prediction error err:

    err_1 ~ N(0, Pi),   filtered error f_t = err_t - L_t S_t^-1 e_t,   err_{t+1} = F f_t + w_t
    backward over e_t gives r_t,   d_1 = err_1 - Pi r_0,   d_{t+1} = F d_t + w_t - Q r_t

d_t has exactly the posterior covariance; posterior draws are smoothed mean plus d. All draws of a
batch run at once, as matrix products. The data run along as one more series: with err_1 = 0,
w_t = 0 and v_t = y_t the recursions above are those of the smoothed mean, d_t = -x_t|T.

Three facts make few draws enough for the variances.

- f_t = d_t + c_t with c_t = x_t|T - x_t|t independent of d_t, and Var f_t = V_f is known exactly.
  With V = Var d and C = Var c = V_f - V, the two estimates mean(d^2) and V_f - mean(c^2) are
  independent; weighted by C^2 : V^2 they reach the error sqrt(2 / n) V C / sqrt(V^2 + C^2). The
  weights come from the other half of the draws, so that the estimate stays unbiased.
- Between the transient of the gains and the reach of the last sample, V does not depend on time:
  d^2 and c^2 are averaged over time, too.
- What is left is estimated from the spread between draws, which are independent.

Cost O(n_states n_channels) a sample and draw; memory two arrays (n_states, n_times, batch) in
single precision.

References: Durbin, Koopman 2002, doi:10.1093/biomet/89.3.603 (simulation smoother).
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .disturbance_smoother import backward_step, filter_step, forward, log_density, turn
from .sparse_product import multiply
from .stationary_prior import apply_process_cov, apply_stationary_cov, count_terms, draw_process

__all__ = ["Smoothed", "batch_size", "disturbance_power", "draw", "moments"]

# Draws start after so many steps that this fraction of their variance is missing.
_BURN_IN_TOL = 1e-8
# The reach of the last sample ends where its effect on variances is below this fraction.
_REACH_TOL = 1e-6
_MIN_INTERIOR = 16  # fewer samples are not worth pooling


class Smoothed(NamedTuple):
    """Posterior moments of the states, samples first."""

    mean: np.ndarray  # (n_times, n_states)
    variance: np.ndarray  # (n_times, n_states), unbiased but for a cut to [0, filtered variance]
    std_error: np.ndarray  # (n_times, n_states), Monte Carlo standard error of `variance`
    log_likelihood: float  # of the whitened data


class _Pass(NamedTuple):
    """A batch of simulated series after filter and backward pass, ready to go forward."""

    first: jax.Array  # (n_states, n_draws) d_1
    blocks: list  # of (start, w - Q r, f), the latter two (length, n_states, n_draws)
    mean: np.ndarray | None  # (n_times, n_states) of the data that ran along
    log_likelihood: float


def batch_size(gains, n_draws, memory_limit):
    """Draws that fit in the memory limit at once, even and at least 2."""
    n_states = gains.model.dynamics.process_var.shape[0]
    of_draw = 2 * 4 * n_states * gains.n_times
    return int(np.clip(memory_limit // of_draw // 2 * 2, 2, n_draws + n_draws % 2))


def draw(key, gains, data, n_draws, memory_limit):
    """Draw n_draws courses from the posterior given `data` (n_times, n_channels).

    Returns
    -------
    (n_draws, n_times, n_states) array
    """
    batch = batch_size(gains, n_draws, memory_limit)
    mean, errors = None, []
    for number in range(-(-n_draws // batch)):
        key_batch = jax.random.fold_in(key, number)
        given = data if mean is None else None
        simulated = _simulate(key_batch, gains, batch, None, memory_limit, given)
        mean = simulated.mean if mean is None else mean
        d, path = simulated.first, []
        for _, change, _ in simulated.blocks:
            d, block = _walk(gains.model.dynamics, d, change)
            path.append(np.asarray(block))
        errors.append(np.moveaxis(np.concatenate(path), 2, 0))
    draws = np.concatenate(errors)[:n_draws]
    draws += mean
    return draws


def moments(key, gains, data, n_draws, memory_limit, progress=lambda done: None):
    """Posterior means and variances of the states.

    Parameters
    ----------
    key : PRNG key
    gains : GainSequence
        With variances.
    data : (n_times, n_channels) array
        Whitened.
    n_draws : int
        Rounded up to full batches of even size.
    memory_limit : float
        Bytes for one batch.
    progress : callable
        Called with the share of the draws done.

    Returns
    -------
    Smoothed
    """
    n_times = gains.n_times
    interior = _interior(gains)
    batch = batch_size(gains, n_draws, memory_limit)
    n_batches = -(-n_draws // batch)
    inside, edges, mean, log_likelihood = [], {}, None, 0.0
    for number in range(n_batches):
        key_batch = jax.random.fold_in(key, number)
        given = data if mean is None else None
        simulated = _simulate(key_batch, gains, batch, interior, memory_limit, given)
        if mean is None:
            mean, log_likelihood = simulated.mean, simulated.log_likelihood
        d, pooled = simulated.first, []
        for start, change, filtered in simulated.blocks:
            is_inside = interior.start <= start < interior.stop
            d, squares = _squares(gains.model.dynamics, d, change, filtered, is_inside)
            if is_inside:
                pooled.append(squares)
            else:
                edges[start] = edges.get(start, 0.0) + np.asarray(squares) / n_batches
        simulated = None
        if pooled:
            inside.append(np.asarray(sum(pooled)) / len(interior))
        progress((number + 1) / n_batches)
    n_states = gains.model.dynamics.process_var.shape[0]
    dtype = gains.predicted_var.dtype
    variance, std_error = np.empty((n_times, n_states), dtype), np.empty((n_times, n_states), dtype)
    filtered_var = gains.filtered_var
    for start, squares in edges.items():
        times = slice(start, start + squares.shape[1])
        rows = np.minimum(np.arange(times.start, times.stop), gains.n_transient)
        variance[times], std_error[times] = _combine(squares, filtered_var[rows], n_batches * batch)
    if inside:
        of_draws = np.concatenate(inside, axis=2)  # (2, n_states, n_draws)
        variance[interior], std_error[interior] = _combine_draws(of_draws, filtered_var[-1])
    return Smoothed(mean, variance, std_error, log_likelihood)


def disturbance_power(key, gains, n_draws, memory_limit):
    """Mean squares of the simulated disturbances, for the E-step of EM.

    Returns
    -------
    state_power : (n_states,) array
        Estimate of the sum over samples 1 to n_times - 1 of diag Var r_t.
    first_power : (n_states, n_draws) array
        r_0 of each draw.
    noise_power : float
        Estimate of the sum over samples of tr Var of the smoothed noise, in units of noise_var^2.
    quadratic : float
        Estimate of the sum over samples of E r_t' Q r_t.
    """
    batch = batch_size(gains, n_draws, memory_limit)
    n_batches = -(-n_draws // batch)
    power, noise_power, quadratic, firsts = 0.0, 0.0, 0.0, []
    model = gains.model
    for number in range(n_batches):
        key_batch = jax.random.fold_in(key, number)
        error = _burn_in(key_batch, gains, batch)
        innovations = []
        for gain, start, length in gains.blocks():
            samples = _no_samples(gains, length)
            error, *_, innovation, _ = _error_block(
                key_batch, model, gain, error, start, samples, batch, False
            )
            innovations.append(innovation)
        r = jnp.zeros_like(error)
        for gain, _, _ in gains.reversed_blocks():
            innovation = innovations.pop()
            r, squares, noise, q = _backward_power(model, gain, r, innovation)
            power = power + squares / (n_batches * batch)
            noise_power += float(noise) / (n_batches * batch)
            quadratic += float(q) / (n_batches * batch)
        firsts.append(r)
    return power, jnp.concatenate(firsts, axis=1), noise_power, quadratic


def _interior(gains):
    """Samples at which the smoothed variance has its steady value."""
    start = min(gains.n_loose, gains.n_transient)
    reach = int(_reach(gains.model, gains.steady, gains.n_times))
    stop = gains.n_times - reach
    return range(start, stop) if stop - start >= _MIN_INTERIOR else range(0)


def _simulate(key, gains, n_draws, interior, memory_limit, data=None):
    """Draw a batch of series, filter them, and `data` if given, and run the backward pass."""
    model = gains.model
    system = model.dynamics
    series = _no_samples(gains, gains.n_times) if data is None else data[:, :, None]
    n_given = series.shape[2]
    error = jnp.pad(_burn_in(key, gains, n_draws), ((0, 0), (0, n_given)))
    first_error, passed, log_likelihood = error, [], 0.0
    for gain, start, length in gains.blocks():
        for begin, count in _split(start, length, interior):
            samples = series[begin : begin + count]
            error, filtered, process, innovation, value = _error_block(
                key, model, gain, error, begin, samples, n_draws, True
            )
            passed.append([begin, innovation, filtered, process])
            log_likelihood += float(jnp.sum(value))
    r, blocks, disturbances = jnp.zeros_like(error), [], []
    for gain, start, length in gains.reversed_blocks():
        for begin, _ in reversed(_split(start, length, interior)):
            at, innovation, filtered, process = passed.pop()
            assert at == begin
            r, change, disturbance = _backward_block(model, gain, r, innovation, process)
            blocks.append((begin, change, filtered))
            disturbances.append(disturbance)
    correction = apply_stationary_cov(system, r, gains.n_terms, memory_limit / 4)
    mean = None
    if n_given:
        disturbance = jnp.concatenate(disturbances[::-1])[:, :, 0]
        mean = np.asarray(forward(system, correction[:, -1], disturbance))
    first = (first_error - correction)[:, :n_draws]
    return _Pass(first, blocks[::-1], mean, log_likelihood)


def _no_samples(gains, length):
    """Data of no series at all."""
    return jnp.zeros((length, gains.model.lead_field.shape[0], 0), gains.model.lead_field.dtype)


def _split(start, length, interior):
    """Cut a block where the interior begins or ends."""
    cuts = [start, start + length]
    if interior:
        cuts += [c for c in (interior.start, interior.stop) if start < c < start + length]
    cuts = sorted(cuts)
    return [(a, b - a) for a, b in itertools.pairwise(cuts)]


def _burn_in(key, gains, n_draws):
    n_steps = count_terms(gains.model.dynamics, _BURN_IN_TOL)
    return _stationary_draws(jax.random.fold_in(key, 0), gains.model.dynamics, n_steps, n_draws)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _stationary_draws(key, system, n_steps, n_draws):
    def body(step, x):
        w = draw_process(jax.random.fold_in(key, step), system, n_draws)
        return multiply(system.transition, x) + w

    start = jnp.zeros((system.process_var.shape[0], n_draws), system.process_var.dtype)
    return jax.lax.fori_loop(0, n_steps, body, start)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _error_block(key, model, gain, error, start, samples, n_draws, keep):
    """Prediction errors from sample `start` on; those of given series are minus their means.

    Returns
    -------
    error : (n_states, n_draws + n_given) array
    filtered, process : (length, n_states, n_draws) arrays in single precision, or None
    innovation : (length, n_channels, n_draws + n_given) array
    log_likelihood : (n_given,) array
    """
    length, n_channels, n_given = samples.shape
    dtype = error.dtype

    def body(error, inputs):
        t, sample = inputs
        key_process, key_noise = jax.random.split(jax.random.fold_in(key, 1 + t))
        normal = jax.random.normal(key_noise, (n_channels, n_draws), jnp.float32)
        noise = jnp.concatenate([jnp.sqrt(model.noise_var) * normal.astype(dtype), sample], axis=1)
        process = draw_process(key_process, model.dynamics, n_draws)
        # The error of an estimate that starts at zero is filtered like data, with reversed sign.
        following, filtered, innovation, scaled = filter_step(model, gain, error, -noise)
        following = following + jnp.pad(process, ((0, 0), (0, n_given)))
        square = jnp.sum((innovation * scaled)[:, n_draws:], axis=0)
        if keep:
            kept = filtered[:, :n_draws].astype(jnp.float32), process.astype(jnp.float32)
        else:
            kept = None, None
        return following, (*kept, -innovation, square)

    times = start + jnp.arange(length, dtype=jnp.int32)
    error, (filtered, process, innovation, square) = jax.lax.scan(body, error, (times, samples))
    value = log_density(gain, jnp.sum(square, axis=0), length)
    return error, filtered, process, innovation, value


@functools.partial(jax.jit, donate_argnums=4)
def _backward_block(model, gain, r, innovation, process):
    """Turn w into w - Q r, sample by sample from the last, in place; keep r of given series."""
    length, n_states, n_draws = process.shape
    turned = turn(model, gain, length)

    def body(i, carry):
        r, change, given = carry
        t = length - 1 - i
        smoothed = apply_process_cov(model.dynamics, r[:, :n_draws]).astype(change.dtype)
        change = change.at[t].add(-smoothed)
        given = given.at[t].set(r[:, n_draws:])
        r, _ = backward_step(model, gain, turned, r, innovation[t])
        return r, change, given

    given = jnp.zeros((length, n_states, r.shape[1] - n_draws), r.dtype)
    return jax.lax.fori_loop(0, length, body, (r, process, given))


@jax.jit
def _backward_power(model, gain, r, innovation):
    turned = turn(model, gain, innovation.shape[0])

    def body(carry, innovation):
        r, power, noise_power, quadratic = carry
        power = power + jnp.sum(r**2, axis=1)
        quadratic = quadratic + jnp.sum(r * apply_process_cov(model.dynamics, r))
        r, noise = backward_step(model, gain, turned, r, innovation)
        return (r, power, noise_power + jnp.sum(noise**2), quadratic), None

    zero = jnp.zeros((), r.dtype)
    start = (r, jnp.zeros_like(r[:, 0]), zero, zero)
    return jax.lax.scan(body, start, innovation, reverse=True)[0]


@functools.partial(jax.jit, static_argnums=4)
def _squares(system, d, change, filtered, is_inside):
    """Squares of d and of c = f - d.

    Summed over the block for each draw, (2, n_states, n_draws), inside; outside mean over each
    half of the draws, (4, length, n_states): d, d, c, c.
    """
    half = d.shape[1] // 2

    def square(d, filtered):
        return jnp.stack([d**2, (filtered.astype(d.dtype) - d) ** 2])

    def body(carry, inputs):
        d, total = carry
        change, filtered = inputs
        values = square(d, filtered)
        if is_inside:
            out, total = None, total + values
        else:
            out = jnp.concatenate(
                [jnp.mean(v, axis=1)[None] for s in values for v in (s[:, :half], s[:, half:])]
            )
        return (multiply(system.transition, d) + change.astype(d.dtype), total), out

    total = jnp.zeros((2, *d.shape), d.dtype) if is_inside else None
    (d, total), out = jax.lax.scan(body, (d, total), (change, filtered))
    return d, total if is_inside else jnp.moveaxis(out, 1, 0)


@jax.jit
def _walk(system, d, change):
    def body(d, change):
        return multiply(system.transition, d) + change.astype(d.dtype), d

    return jax.lax.scan(body, d, change)


@functools.partial(jax.jit, static_argnums=2)
def _reach(model, gain, n_times):
    """Samples back from the last until its effect on variances has died out."""
    n_channels = model.lead_field.shape[0]
    probes = jax.random.normal(jax.random.key(0), (n_channels, 4), jnp.float32)
    r = model.lead_field.T @ jax.scipy.linalg.solve_triangular(
        gain.innovation_chol.T, probes.astype(model.lead_field.dtype), lower=False
    )
    zero = jnp.zeros_like(probes, dtype=r.dtype)

    turned = turn(model, gain, n_times)

    def body(r, _):
        new, _ = backward_step(model, gain, turned, r, zero)
        return new, jnp.sum(r**2)

    _, power = jax.lax.scan(body, r, length=n_times)
    left = jnp.cumsum(power[::-1])[::-1]
    return jnp.sum(left > _REACH_TOL * left[0])


def _weights(d_square, c_square):
    """Share of the direct estimate in the combination of least variance."""
    return c_square**2 / np.maximum(d_square**2 + c_square**2, np.finfo(d_square.dtype).tiny)


def _combine(squares, filtered_var, n_draws):
    """Weigh the two estimates at each sample; see the module's first point."""
    d_square, c_square = squares[:2], squares[2:]
    estimate, shares = 0.0, []
    for own, other in ((0, 1), (1, 0)):
        share = _weights(d_square[other], c_square[other])
        estimate = estimate + 0.5 * (
            share * d_square[own] + (1 - share) * (filtered_var - c_square[own])
        )
        shares.append(share)
    estimate = np.clip(estimate, 0.0, filtered_var)
    explained = filtered_var - estimate
    spread = sum(0.5 * ((s * estimate) ** 2 + ((1 - s) * explained) ** 2) for s in shares)
    return estimate, np.sqrt(2 / n_draws * spread)


def _combine_draws(of_draws, filtered_var):
    """Weigh the two estimates pooled over time; the error is the spread between draws."""
    n_draws = of_draws.shape[2]
    half = n_draws // 2
    values = []
    for own, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        d_square, c_square = of_draws[:, :, other].mean(axis=2)
        share = _weights(d_square, c_square)[:, None]
        of_own = of_draws[:, :, own]
        values.append(share * of_own[0] + (1 - share) * (filtered_var[:, None] - of_own[1]))
    values = np.concatenate(values, axis=1)
    std_error = np.std(values, axis=1, ddof=1) / np.sqrt(n_draws)
    return np.clip(values.mean(axis=1), 0.0, filtered_var), std_error
