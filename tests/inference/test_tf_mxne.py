"""Time-frequency mixed norms: the frame is tight, the gap certifies, limits are the mixed norm."""

import numpy as np
import pytest
from scipy.optimize import brentq

from bayes_esi.inference import mixed_norm, tf_mxne, time_frequency

M, N, D, T = 12, 30, 3, 24


def make(seed=0):
    """Two sources, a brief one and one that lasts."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((M, N, D))
    field[:, 1:] += 0.7 * field[:, :-1]
    times = np.arange(T)
    courses = np.exp(-0.5 * ((times - 6) / 2) ** 2), np.sin(0.4 * times)
    data = 0.3 * rng.standard_normal((M, T))
    for j, course in zip((5, 20), courses, strict=True):
        data += np.outer(field[:, j] @ rng.standard_normal(D), 2 * course)
    return data, field, rng.uniform(0.5, 2, N)


def frame():
    return time_frequency.waves(T, 16, 4)


def flat(dictionary):
    return dictionary.atoms.reshape(len(dictionary.atoms), -1)


@pytest.mark.parametrize("n_times", [1, 7, 55, 64, 130])
@pytest.mark.parametrize(("window", "step"), [(64, 4), (16, 8), (8, 2)])
def test_frames_are_tight(n_times, window, step):
    waves = time_frequency.waves(n_times, window, step)
    atoms = flat(waves)
    np.testing.assert_allclose(atoms @ atoms.T, np.eye(n_times), atol=1e-13)
    n_atoms = -(-n_times // step) * (window // 2 + 1)
    assert waves.atoms.shape == (n_times, n_atoms, 2) and waves.count.shape == (n_atoms,)


def test_frames_are_the_spectra_of_windows():
    """Against an FFT of the windowed signal, and energy by Parseval."""
    n_times, window, step = 40, 16, 4
    waves = time_frequency.waves(n_times, window, step)
    x = np.random.default_rng(0).standard_normal(n_times)
    u = np.einsum("t,tac->ac", x, waves.atoms).reshape(-1, window // 2 + 1, 2)
    shape = np.sin(np.pi * (np.arange(window) + 0.5) / window)
    padded = np.zeros(window + (len(u) - 1) * step)
    start = (window - step) // 2
    energy = np.zeros_like(padded)
    padded[start : start + n_times] = x
    for i in range(len(u)):
        energy[i * step : i * step + window] += shape**2
    for i in range(len(u)):
        here = slice(i * step, i * step + window)
        spectrum = np.fft.rfft(padded[here] * shape / np.sqrt(window * energy[here]))
        spectrum[1:-1] *= np.sqrt(2)
        np.testing.assert_allclose(u[i, :, 0] + 1j * u[i, :, 1], spectrum, atol=1e-13)
    assert np.sum(u**2) == pytest.approx(np.sum(x**2), rel=1e-13)
    both = time_frequency.join(waves, time_frequency.samples(n_times))
    np.testing.assert_allclose(flat(both) @ flat(both).T, np.eye(n_times), atol=1e-13)


def objective(data, field, alpha, weights, rho, dictionary, coefficients):
    """The definition, over all sources."""
    sources = np.einsum("ndac,tac->ndt", coefficients, dictionary.atoms)
    residual = data - np.einsum("mnd,ndt->mt", field, sources)
    whole = np.sqrt(np.sum(coefficients**2, axis=(1, 2, 3)))
    single = np.sqrt(np.sum(coefficients**2, axis=(1, 3))) @ dictionary.count
    return 0.5 * np.sum(residual**2) + alpha * weights @ ((1 - rho) * whole + rho * single)


def proximal_gradient(data, field, alpha, weights, rho, dictionary, n_steps):
    """Accelerated, over all sources and atoms at once."""
    lipschitz = np.linalg.norm(field.reshape(M, -1), 2) ** 2
    shape = (N, D, *dictionary.atoms.shape[1:])
    u = v = np.zeros(shape)
    speed = 1.0
    for _ in range(n_steps):
        sources = np.einsum("ndac,tac->ndt", v, dictionary.atoms)
        residual = data - np.einsum("mnd,ndt->mt", field, sources)
        slope = np.einsum("mnd,mt->ndt", field, residual)
        z = v + np.einsum("ndt,tac->ndac", slope, dictionary.atoms) / lipschitz
        size = np.sqrt(np.sum(z**2, axis=(1, 3), keepdims=True))
        limit = alpha * rho / lipschitz * weights[:, None] * dictionary.count
        z = z * np.maximum(1 - limit[:, None, :, None] / np.maximum(size, 1e-300), 0)
        size = np.sqrt(np.sum(z**2, axis=(1, 2, 3)))
        limit = alpha * (1 - rho) / lipschitz * weights
        z = z * np.maximum(1 - limit / np.maximum(size, 1e-300), 0)[:, None, None, None]
        if np.sum((v - z) * (z - u)) > 0:
            speed = 1.0
        faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
        v = z + (speed - 1) / faster * (z - u)
        u, speed = z, faster
    return u


def expand(found):
    full = np.zeros((N, *found.coefficients.shape[1:]))
    full[found.support] = found.coefficients
    return full


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.6])
def test_equals_proximal_gradient_over_all_sources(rho):
    data, field, weights = make(1)
    options = {"l1_ratio": rho, "frame": frame()}
    alpha = 0.2 * tf_mxne.alpha_max(data, field, weights, **options)
    found = tf_mxne.run(data, field, alpha, weights, tol=1e-10, **options)
    assert found.is_converged and 0 <= found.gap <= 1e-10 and 1 < found.support.size < N
    plain = proximal_gradient(data, field, alpha, weights, rho, frame(), 2000)
    args = (data, field, alpha, weights, rho, frame())
    assert objective(*args, expand(found)) == pytest.approx(found.objective, rel=1e-12)
    # Ours is within 1e-10 of the energy of the data above the minimum.
    assert found.objective <= objective(*args, plain) + 1e-10 * 0.5 * np.sum(data**2)
    sources = np.zeros((N, D, T))
    sources[found.support] = found.sources
    wanted = np.einsum("ndac,tac->ndt", plain, frame().atoms)
    # Coefficients in a redundant frame may trade places; sources hardly so.
    np.testing.assert_allclose(sources, wanted, atol=1e-3 * np.abs(wanted).max())


def test_without_atoms_penalty_and_with_single_samples_it_is_the_mixed_norm():
    data, field, weights = make(2)
    most = mixed_norm.alpha_max(data, field, weights)
    single = time_frequency.samples(T)
    for dictionary in (single, frame()):
        other = tf_mxne.alpha_max(data, field, weights, l1_ratio=0.0, frame=dictionary)
        assert other == pytest.approx(most, rel=1e-12)
        # A tight frame without the second penalty: the least coefficients are those of X.
        wanted = mixed_norm.run(data, field, 0.2 * most, weights, tol=1e-12)
        found = tf_mxne.run(
            data, field, 0.2 * most, weights, l1_ratio=0.0, frame=dictionary, tol=1e-11
        )
        np.testing.assert_array_equal(found.support, wanted.support)
        np.testing.assert_allclose(found.sources, wanted.sources, atol=1e-4)
        assert found.objective == pytest.approx(wanted.objective, rel=1e-10)


def test_dual_norm_is_the_root_of_its_equation():
    rng = np.random.default_rng(3)
    magnitudes = rng.exponential(size=(20, 50)) ** 2
    count = rng.choice([1, np.sqrt(2)], 50)
    for rho in (0.0, 0.05, 0.5, 0.95):
        found = np.asarray(tf_mxne._dual_norm(magnitudes, count, rho))
        for a, t in zip(magnitudes, found, strict=True):

            def excess(t, a=a, rho=rho):
                return np.linalg.norm(np.maximum(a - t * rho * count, 0)) - t * (1 - rho)

            assert t == pytest.approx(brentq(excess, 0, np.linalg.norm(a) / (1 - rho) + 1), 1e-9)


def test_dual_norm_bounds_inner_products():
    """Definition of a dual norm: sup of <a, u> over penalties of at most 1, reached."""
    rng = np.random.default_rng(4)
    a, count, rho = rng.exponential(size=40), np.ones(40), 0.3
    t = float(tf_mxne._dual_norm(a[None], count, rho)[0])

    def penalty(u):
        return (1 - rho) * np.linalg.norm(u) + rho * count @ np.abs(u)

    for _ in range(200):
        u = rng.standard_normal(40)
        assert a @ u <= t * penalty(u) * (1 + 1e-12)
    best = np.maximum(a - t * rho * count, 0)
    assert a @ best == pytest.approx(t * penalty(best), rel=1e-10)


def test_zero_from_alpha_max_on():
    data, field, weights = make(5)
    for rho in (0.05, 0.5):
        options = {"l1_ratio": rho, "frame": frame()}
        most = tf_mxne.alpha_max(data, field, weights, **options)
        above = tf_mxne.run(data, field, 1.0001 * most, weights, **options)
        assert above.support.size == 0 and above.is_converged and above.gap < 1e-12
        assert above.sources.shape == (0, D, T)
        below = tf_mxne.run(data, field, 0.99 * most, weights, tol=1e-9, **options)
        assert below.support.size >= 1


def test_few_atoms_make_sources_that_come_and_go():
    data, field, _ = make(6)
    alphas = [tf_mxne.alpha_max(data, field, l1_ratio=r, frame=frame()) for r in (0.0, 0.4)]
    smooth, sparse = (
        tf_mxne.run(data, field, 0.3 * a, l1_ratio=r, frame=frame())
        for r, a in zip((0.0, 0.4), alphas, strict=True)
    )
    assert np.mean(smooth.coefficients[..., 0] == 0) < 0.01
    assert np.mean(sparse.coefficients[..., 0] == 0) > 0.5
    brief = sparse.sources[list(sparse.support).index(5)]
    assert np.sum(brief[:, :13] ** 2) > 0.9 * np.sum(brief**2)


def test_views_of_the_same_problem():
    data, field, weights = make(7)
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    turns = np.linalg.qr(rng.standard_normal((N, D, D)))[0]
    alpha = 0.2 * tf_mxne.alpha_max(data, field, weights, frame=frame())
    one = tf_mxne.run(data, field, alpha, weights, frame=frame(), tol=1e-10)
    other = tf_mxne.run(
        data,
        np.einsum("mnd,nde->mne", field, turns)[:, order],
        alpha,
        weights[order],
        frame=frame(),
        tol=1e-10,
    )
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert set(order[other.support]) == set(one.support)


def test_one_compilation_and_single_precision():
    data, field, weights = make(8)
    alpha = 0.3 * tf_mxne.alpha_max(data, field, weights, frame=frame())
    double = tf_mxne.run(data, field, alpha, weights, frame=frame())
    traces = tf_mxne._descend._cache_size()
    tf_mxne.run(*make(9)[:2], 0.9 * alpha, weights, frame=frame())
    assert tf_mxne._descend._cache_size() == traces
    single = tf_mxne.run(data, field.astype(np.float32), alpha, weights, frame=frame())
    assert single.sources.dtype == np.float32 and single.is_converged and single.gap <= 1e-4
    assert single.objective == pytest.approx(double.objective, rel=2e-4)
    short = tf_mxne.run(
        data, field, 0.1 * alpha, frame=frame(), tol=1e-12, max_sweeps=5, max_steps=1
    )
    assert not short.is_converged


def test_same_numbers_as_mne():
    """Largest alpha, and the objective at a third of it, in MNE's percent."""
    from mne.inverse_sparse.mxne_optim import _Phi, norm_epsilon_inf, tf_mixed_norm_solver

    data, field, _ = make(10)
    columns = field.reshape(M, -1)
    phi = _Phi(np.array([16]), np.array([4]), np.array([T // 4 * 9]), T)
    for rho in (0.05, 0.3):
        most = tf_mxne.alpha_max(data, field, l1_ratio=rho, frame=frame())
        assert most == pytest.approx(norm_epsilon_inf(columns, data, phi, rho, D), rel=1e-9)
    found = tf_mxne.run(data, field, 0.3 * most, l1_ratio=0.3, frame=frame(), tol=1e-8)
    energy = 0.5 * np.sum(data**2)
    theirs = tf_mixed_norm_solver(
        data, columns * 100 / most, 30 * 0.7, 30 * 0.3, wsize=16, tstep=4, n_orient=D,
        maxit=3000, tol=1e-6 * energy, debias=False, verbose="error",
    )  # fmt: skip
    assert -1e-8 * energy <= theirs[2][-1] - found.objective < 2e-6 * energy


def test_bad_input():
    data, field, _ = make()
    with pytest.raises(ValueError, match="l1_ratio must be at least 0 and below 1"):
        tf_mxne.run(data, field, 1.0, l1_ratio=1.0)
    with pytest.raises(ValueError, match=r"frame.atoms must have shape"):
        tf_mxne.run(data, field, 1.0, frame=time_frequency.waves(T + 1))
    loose = frame()._replace(atoms=2 * frame().atoms)
    with pytest.raises(ValueError, match="frame must be tight"):
        tf_mxne.run(data, field, 1.0, frame=loose)
    with pytest.raises(ValueError, match="window must be a multiple of 4"):
        time_frequency.waves(T, 18)
    with pytest.raises(ValueError, match="step must be even"):
        time_frequency.waves(T, 64, 64)
    with pytest.raises(ValueError, match="alpha must be positive"):
        tf_mxne.run(data, field, 0.0)
    with pytest.raises(ValueError, match="data must have shape"):
        tf_mxne.alpha_max(data[1:], field)
