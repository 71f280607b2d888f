"""eLORETA: the fixed point by hand, no localisation error, invariances, precision, MNE."""

import warnings

import numpy as np
import pytest

from bayes_esi.forward import Sphere
from bayes_esi.inference import eloreta

HEAD = Sphere([0.080, 0.086, 0.092], [0.33, 0.0042, 0.33])


def sources(step=0.0172, radius=0.075):
    axis = np.arange(-radius, radius, step) + 0.003
    pos = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return pos[np.linalg.norm(pos, axis=1) < radius]


def sensors(n, radius):
    z = 1 - 1.4 * (np.arange(n) + 0.5) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    ring = np.sqrt(1 - z**2)
    return radius * np.column_stack([ring * np.cos(angle), ring * np.sin(angle), z])


@pytest.fixture(scope="module")
def fields():
    """Potentials in free and fixed orientation, and magnetic fields, silent along the radius."""
    pos = sources()
    eeg = np.asarray(HEAD.eeg(pos, sensors(40, 0.092), exact=False))
    coils = sensors(40, 0.11)
    meg = np.asarray(HEAD.meg(pos, coils, coils / 0.11))
    return {
        name: field / np.sqrt(np.mean(np.sum(field**2, axis=(1, 2))))
        for name, field in {"free": eeg, "fixed": eeg[:, :, 2:], "meg": meg}.items()
    }


def products(field, cov, lambda2):
    """M and G_j' M G_j of covariances (n, d, d), in double precision on the host."""
    m = len(field)
    flat = field.reshape(m, -1)
    weighted = np.einsum("msd,sde->mse", field, cov, optimize=True).reshape(m, -1)
    precision = np.linalg.inv(weighted @ flat.T + lambda2 * np.eye(m))
    image = (precision @ flat).reshape(field.shape)
    return precision, np.einsum("msd,mse->sde", field, image, optimize=True)


def root(blocks, power):
    """Power of symmetric blocks on their range."""
    values, vectors = np.linalg.eigh(blocks)
    is_seen = values > 1e-10 * values[:, -1:]
    powers = np.where(is_seen, np.where(is_seen, values, 1) ** power, 0)
    return (vectors * powers[:, None]) @ vectors.swapaxes(1, 2)


def residual_of(field, cov, lambda2):
    _, quadratic = products(field, cov, lambda2)
    square = root(cov, -2.0)
    norms = np.linalg.norm(square - quadratic, axis=(1, 2)), np.linalg.norm(square, axis=(1, 2))
    return np.max(norms[0] / norms[1])


@pytest.mark.parametrize("name", ["free", "fixed", "meg"])
@pytest.mark.parametrize("lambda2", [1 / 9, 30.0])
def test_solves_the_equation_and_says_how_well(fields, name, lambda2):
    field = fields[name]
    result = eloreta.run(field, lambda2)
    cov = np.asarray(result.inverse_weights)
    assert cov.shape == (field.shape[1], field.shape[2], field.shape[2])
    measured = residual_of(field, cov, lambda2)
    assert measured <= 1.05 * float(result.residual) <= 1.05e-8
    loose = eloreta.run(field, lambda2, tol=1e-6)
    measured = residual_of(field, np.asarray(loose.inverse_weights), lambda2)
    # Also where single precision was all: its rounding is part of what is reported.
    assert measured <= float(loose.residual) <= 1e-6
    # The plain iteration gains a factor of 2 a step: 27 steps.
    assert int(result.n_steps) <= 16
    # Where the plain iteration of the definition ends, from another start.
    other = np.broadcast_to(np.eye(field.shape[2]), cov.shape)
    for _ in range(45):
        other = root(products(field, other, lambda2)[1], -0.5)
    # Distances to the fixed point are at most twice the residual.
    np.testing.assert_allclose(cov, other, atol=1e-7 * np.abs(other).max())


def test_tight_and_loose_tolerances(fields):
    field = fields["free"]
    tight = eloreta.run(field, 1 / 9, tol=1e-12)
    assert residual_of(field, np.asarray(tight.inverse_weights), 1 / 9) < 2e-12
    loose = eloreta.run(field, 1 / 9, tol=1e-3)
    assert 1e-5 < loose.residual < 1e-3 and loose.n_steps < tight.n_steps
    cut = eloreta.run(field, 1 / 9, max_steps=3)
    assert cut.n_steps == 3 and cut.residual > 1e-5
    assert residual_of(field, np.asarray(cut.inverse_weights), 1 / 9) <= cut.residual
    # Below rounding: it stops where no gain is left, and says what it reached.
    beyond = eloreta.run(field, 1 / 9, tol=1e-20)
    assert beyond.n_steps < 60 and beyond.residual < 1e-11


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("name", ["free", "fixed", "meg"])
def test_no_localisation_error_at_any_place(fields, name, is_normalised):
    """Without noise the estimate of a source at j is largest at j, in any direction."""
    field = fields[name]
    _, n, d = field.shape
    lambda2 = 1 / 9
    result = eloreta.run(field, lambda2, is_normalised=is_normalised)
    kernel = np.asarray(eloreta.kernel(field, result.inverse_weights, lambda2))
    rng = np.random.default_rng(0)
    for _ in range(1 if d == 1 else 3):
        ori = rng.standard_normal((n, d))
        data = np.einsum("mjd,jd->mj", field, ori)
        image = np.linalg.norm(kernel @ data, axis=1)
        assert np.array_equal(np.argmax(image, axis=0), np.arange(n))
    if name == "free":
        # The starting weights do not have this property: the test can fail.
        gram = np.einsum("msd,mse->sde", field, field, optimize=True)
        kernel = np.asarray(eloreta.kernel(field, root(gram, -0.5), lambda2))
        image = np.linalg.norm(kernel @ data, axis=1)
        assert np.mean(np.argmax(image, axis=0) == np.arange(n)) < 0.9


def test_normalised_is_the_unscaled_equation_elsewhere(fields):
    field = fields["free"]
    m = len(field)
    result = eloreta.run(field, 1 / 9, is_normalised=True)
    cov = np.asarray(result.inverse_weights)
    gram = np.einsum("msd,mse->sde", field, field, optimize=True)
    assert np.isclose(np.sum(cov * gram), m, rtol=1e-12)
    _, quadratic = products(field, cov, 1 / 9)
    ratio = np.linalg.norm(root(quadratic, -0.5), axis=(1, 2)) / np.linalg.norm(cov, axis=(1, 2))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-7)
    # C = s E with E the solution at lambda2 / s.
    scale = ratio[0] ** -2
    other = eloreta.run(field, 1 / 9 / scale)
    np.testing.assert_allclose(cov, scale * other.inverse_weights, atol=1e-7 * np.abs(cov).max())


def test_axes_units_and_order(fields):
    field = fields["free"]
    base = np.asarray(eloreta.run(field, 1 / 9).inverse_weights)
    size = np.abs(base).max()
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((field.shape[1], 3, 3)))[0]
    turned = eloreta.run(np.einsum("msd,sde->mse", field, turn, optimize=True), 1 / 9)
    back = turn @ np.asarray(turned.inverse_weights) @ turn.swapaxes(1, 2)
    np.testing.assert_allclose(back, base, atol=1e-7 * size)
    rows = np.linalg.qr(rng.standard_normal((len(field), len(field))))[0]
    mixed = np.einsum("kr,rsd->ksd", rows, field, optimize=True)
    np.testing.assert_allclose(eloreta.run(mixed, 1 / 9).inverse_weights, base, atol=1e-7 * size)
    # A field c times as strong with noise c^2 times as strong has the same covariances.
    strong = eloreta.run(1e8 * field, 1e16 / 9)
    np.testing.assert_allclose(strong.inverse_weights, base, atol=1e-7 * size)


def test_silent_directions_have_no_variance(fields):
    field = fields["meg"].copy()
    cov = np.asarray(eloreta.run(field, 1 / 9).inverse_weights)
    radial = sources() / np.linalg.norm(sources(), axis=1, keepdims=True)
    silent = np.einsum("sde,se->sd", cov, radial)
    assert np.abs(silent).max() < 1e-9 * np.abs(cov).max()
    field[:, 11] = 0
    cov = np.asarray(eloreta.run(field, 1 / 9).inverse_weights)
    assert np.isfinite(cov).all() and np.all(cov[11] == 0)


def test_kernel(fields):
    field = fields["free"]
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((field.shape[1], 3, 3))
    cov = factor @ factor.swapaxes(1, 2)
    precision, _ = products(field, cov, 0.7)
    expected = cov @ (field.transpose(1, 2, 0) @ precision)
    result = eloreta.kernel(field, cov, 0.7)
    np.testing.assert_allclose(result, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.slow
def test_single_precision(fields):
    field = fields["free"]
    low = eloreta.run(field.astype(np.float32), np.float32(1 / 9))
    assert low.inverse_weights.dtype == np.float32
    assert low.residual < 5e-5 and low.n_steps < 60
    exact = np.asarray(eloreta.run(field, 1 / 9).inverse_weights)
    np.testing.assert_allclose(low.inverse_weights, exact, atol=1e-3 * np.abs(exact).max())


def test_one_trace_for_two_data_sets(fields):
    field = fields["fixed"]
    eloreta.run(field, 1 / 9)
    n_before = eloreta._run._cache_size()
    eloreta.run(1.1 * field, 0.3, tol=1e-6, max_steps=50)
    assert eloreta._run._cache_size() == n_before


def test_bad_input(fields):
    field = fields["fixed"]
    with pytest.raises(ValueError, match="lambda2 must be positive"):
        eloreta.run(field, 0.0)
    with pytest.raises(ValueError, match="at most 3 orientations"):
        eloreta.run(np.ones((3, 4, 5)))
    with pytest.raises(ValueError, match="lead_field is zero"):
        eloreta.run(np.zeros((3, 4, 1)))
    with pytest.raises(ValueError, match="inverse_weights must have shape"):
        eloreta.kernel(field, np.ones((3, 1, 1)), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("is_free", [True, False])
def test_equals_mne(data_dir, is_free):
    import mne
    from mne.minimum_norm import apply_inverse, make_inverse_operator

    folder = data_dir / "sample"
    with mne.use_log_level("ERROR"), warnings.catch_warnings():
        # MNE stops after its iterations and says so.
        warnings.filterwarnings("ignore", "eLORETA weight fitting did not converge")
        evoked = mne.read_evokeds(
            folder / "sample_left-ave.fif.gz", condition=0, baseline=(None, 0)
        ).pick("mag")
        # 43 sensors less three projectors and as many sources: no new shape to compile.
        evoked.pick(evoked.ch_names[:86:2]).apply_proj().crop(0.05, 0.1)
        n_sources = len(sources())
        noise_cov = mne.read_cov(folder / "sample_audvis-cov.fif.gz").pick_channels(evoked.ch_names)
        rng = np.random.default_rng(0)
        unit = rng.standard_normal((n_sources, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        tangent = np.cross(unit, [0.3, 0.4, 0.5])
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        head = mne.make_sphere_model((0.0, 0.0, 0.04), 0.09, evoked.info)
        place = dict(rr=0.05 * unit + [0, 0, 0.045], nn=tangent)
        src = mne.setup_volume_source_space(pos=place)
        forward = mne.make_forward_solution(evoked.info, None, src, head)
        if is_free:
            # Silent directions, which a sphere has, are divided by in MNE.
            noise = rng.standard_normal(forward["sol"]["data"].shape)
            forward["sol"]["data"] += 0.05 * np.std(forward["sol"]["data"]) * noise
        operator = make_inverse_operator(
            evoked.info,
            forward,
            noise_cov,
            loose=1.0 if is_free else 0.0,
            depth=None,
            fixed=not is_free,
            use_cps=False,
        )
        estimate = apply_inverse(
            evoked,
            operator,
            1 / 9,
            "eLORETA",
            pick_ori="vector" if is_free else None,
            method_params=dict(eps=1e-10, max_iter=100),
        )
        # The average of several trials has less noise.
        whitener, _ = mne.cov.compute_whitener(noise_cov, evoked.info, pca=True)
        whitener = whitener * np.sqrt(evoked.nave)
        if not is_free:
            forward = mne.convert_forward_solution(forward, force_fixed=True, use_cps=False)
    field = (whitener @ forward["sol"]["data"]).reshape(40, n_sources, -1)
    result = eloreta.run(field, 1 / 9, is_normalised=True)
    kernel = np.asarray(eloreta.kernel(field, result.inverse_weights, 1 / 9))
    ours = kernel @ (whitener @ evoked.data)
    expected = estimate.data if is_free else estimate.data[:, None]
    # MNE keeps the factors of its operator in single precision.
    np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())
