"""Potential in a sphere of anisotropic shells, against an independent series and physics.

The independent series solves one linear system per Legendre order and source radius for the
constants of all shells at once: the source's sphere is an interface across which the
potential (radial dipole) or the current (monopole) jumps. Nothing is shared with the package.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.forward.sphere import sphere_eeg
from bayes_esi.forward.unbounded import unbounded

# All models have four shells and most calls the same shapes: one compilation serves many tests.
THREE_SHELLS = {
    "radii": [0.080, 0.083, 0.086, 0.092],
    "sigma_radial": [0.33, 0.33 / 80, 0.33 / 80, 0.33],
    "sigma_tangential": [0.33, 0.33 / 80, 0.33 / 80, 0.33],
}
FOUR_SHELLS = {
    "radii": [0.078, 0.080, 0.086, 0.092],
    "sigma_radial": [0.33, 1.79, 0.01, 0.33],
    "sigma_tangential": [0.33, 1.79, 0.03, 0.33],
}
ALL_ANISOTROPIC = {
    "radii": [0.05, 0.06, 0.07, 0.09],
    "sigma_radial": [0.2, 0.5, 0.4, 0.1],
    "sigma_tangential": [0.5, 0.2, 0.1, 0.3],
}
MODELS = {"three": THREE_SHELLS, "four": FOUR_SHELLS, "anisotropic": ALL_ANISOTROPIC}
N_TERMS = 256


def directions(n, seed=0):
    points = np.random.default_rng(seed).standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def legendre(x, n_terms):
    """P_n(x) and P_n'(x) for n = 0 .. n_terms, by the textbook's recursions."""
    p, dp = [np.ones_like(x), x], [np.zeros_like(x), np.ones_like(x)]
    for n in range(1, n_terms):
        p.append(((2 * n + 1) * x * p[n] - n * p[n - 1]) / (n + 1))
        dp.append(dp[n - 1] + (2 * n + 1) * p[n])
    return p, dp


def radial_solution(n, source_radius, jump, radii, sigma_radial, sigma_tangential):
    """Radial potential of order n as a function of the radius.

    `jump` is "potential" for a unit radial dipole, "current" for a unit monopole.
    """
    bounds = np.append(0.0, radii)
    shell = int(np.searchsorted(radii, source_radius))
    # The source splits its shell in two of the same kind.
    inner = np.insert(bounds[:-1], shell + 1, source_radius)
    outer = np.append(inner[1:], radii[-1])
    eps = np.insert(np.asarray(sigma_radial, float), shell, sigma_radial[shell])
    tan = np.insert(np.asarray(sigma_tangential, float), shell, sigma_tangential[shell])
    nu = 0.5 * (np.sqrt(1 + 4 * n * (n + 1) * tan / eps) - 1)

    def basis(k, r):  # values and radial currents of both solutions, each at most one
        grow = (r / outer[k]) ** nu[k]
        fall = (inner[k] / r) ** (nu[k] + 1) if inner[k] > 0 else 0.0
        value = np.array([grow, fall])
        return value, eps[k] * r * np.array([nu[k] * grow, -(nu[k] + 1) * fall])

    size = 2 * len(eps)
    matrix, right = np.zeros((size, size)), np.zeros(size)
    for k in range(len(eps) - 1):
        r = outer[k]
        (v0, c0), (v1, c1) = basis(k, r), basis(k + 1, r)
        matrix[2 * k, 2 * k : 2 * k + 4] = [*-v0, *v1]
        matrix[2 * k + 1, 2 * k : 2 * k + 4] = [*-c0, *c1]
        if k == shell:
            strength = (2 * n + 1) / (4 * np.pi)
            if jump == "potential":
                right[2 * k] = strength / (eps[k] * r**2)
            else:
                right[2 * k + 1] = -strength
    matrix[-2, -2:] = basis(len(eps) - 1, outer[-1])[1]  # no current into the air
    matrix[-1, 1] = 1.0  # no decaying part around the centre
    scale = np.abs(matrix).max(axis=1)
    solution = np.linalg.solve(matrix / scale[:, None], right / scale)

    def potential(r):
        k = min(int(np.searchsorted(outer, r * (1 - 1e-14))), len(eps) - 1)
        return basis(k, r)[0] @ solution[2 * k : 2 * k + 2]

    return potential


def reference_eeg(source_pos, electrode_pos, n_terms, *, radii, sigma_radial, sigma_tangential):
    """Lead field (n_channels, n_sources, 3); sources away from the centre."""
    lead_field = np.zeros((len(electrode_pos), len(source_pos), 3))
    distance = np.linalg.norm(electrode_pos, axis=1)
    towards = electrode_pos / distance[:, None]
    depths, where = np.unique(distance.round(15), return_inverse=True)
    shells = (np.asarray(radii), sigma_radial, sigma_tangential)
    for j, pos in enumerate(source_pos):
        r = np.linalg.norm(pos)
        up = pos / r
        cosine = towards @ up
        p, dp = legendre(cosine, n_terms)
        for n in range(1, n_terms + 1):
            radial = radial_solution(n, r, "potential", *shells)
            monopole = radial_solution(n, r, "current", *shells)
            a = np.array([radial(d) for d in depths])[where]
            b = np.array([monopole(d) for d in depths])[where]
            lead_field[:, j] += (a * p[n])[:, None] * up
            lead_field[:, j] += (b * dp[n] / r)[:, None] * (towards - cosine[:, None] * up)
        # Order 0: the double layer lowers what lies within it.
        eps = np.asarray(sigma_radial)[np.searchsorted(radii, r)]
        lead_field[distance < r, j] -= up / (4 * np.pi * eps * r**2)
    return lead_field


def relative_error(lead_field, reference):
    """Largest difference, relative to the norm over channels of each source."""
    norm = np.sqrt(np.sum(reference**2, axis=(0, 2), keepdims=True))
    return float(np.max(np.abs(np.asarray(lead_field) - reference) / norm))


def neumann(source_pos, electrode_pos, conductivity):
    """Closed form of a homogeneous sphere whose surface carries the electrodes."""
    radius = np.linalg.norm(electrode_pos[0])

    def potential(pos):
        u, e = pos / radius, electrode_pos / radius
        distance = jnp.sqrt(jnp.sum((e - u) ** 2, axis=1))
        logarithm = jnp.log(2 / (1 - e @ u + distance))
        return (2 / distance + logarithm) / (4 * jnp.pi * conductivity * radius)

    return np.asarray(jax.jit(jax.vmap(jax.jacfwd(potential), out_axes=1))(source_pos))


def on_scalp(model, n=12):
    return model["radii"][-1] * directions(n, 1)


def in_brain(model, eccentricity, n=3):
    return model["radii"][0] * eccentricity * directions(n, 2)


@pytest.mark.parametrize("name", MODELS)
def test_it_agrees_with_the_independent_series(name):
    model = MODELS[name]
    eccentricity = np.array([0.01, 0.7, 0.98])[:, None]
    source_pos, electrode_pos = in_brain(model, eccentricity), on_scalp(model)
    # Both series are summed to 1e-12; the reference's linear systems lose two digits.
    reference = reference_eeg(source_pos, electrode_pos, 220, **model)
    assert relative_error(sphere_eeg(source_pos, electrode_pos, **model), reference) < 1e-9


@pytest.mark.parametrize("name", ["four", pytest.param("anisotropic", marks=pytest.mark.slow)])
def test_sources_and_electrodes_may_lie_in_any_shell(name):
    model = MODELS[name]
    inner, middle, outer = (
        model["radii"][0],
        0.5 * (model["radii"][-3] + model["radii"][-2]),
        0.75 * model["radii"][-2] + 0.25 * model["radii"][-1],
    )
    depths = np.array([0.3 * inner, 0.75 * inner, middle, model["radii"][-1]])
    electrode_pos = np.repeat(depths, 3)[:, None] * directions(12, 1)
    source_pos = np.array([0.5 * inner, 0.9 * inner, outer])[:, None] * directions(3, 2)
    # Between the outer source and the surface the reference converges as 0.951^n.
    reference = reference_eeg(source_pos, electrode_pos, 550, **model)
    lead_field = sphere_eeg(source_pos, electrode_pos, **model)
    assert relative_error(lead_field, reference) < 1e-9


@pytest.mark.parametrize("n_shells", [1, 4])
def test_equal_shells_are_one_sphere_in_closed_form(n_shells):
    radii = [0.09] if n_shells == 1 else [0.06, 0.08, 0.085, 0.09]
    sigma = [0.33] * n_shells
    shells = {"radii": radii, "sigma_radial": sigma, "sigma_tangential": sigma}
    electrode_pos = 0.09 * directions(12, 1)
    eccentricity = np.array([0.0, 0.3, 0.7, 0.9, 0.95, 0.98])[:, None]
    source_pos = 0.09 * eccentricity * directions(6, 2)
    lead_field = sphere_eeg(source_pos, electrode_pos, **shells)
    assert relative_error(lead_field, neumann(source_pos, electrode_pos, 0.33)) < 1e-11


def test_splitting_shells_changes_nothing():
    whole, cuts = FOUR_SHELLS, np.array([0, 0, 1, 2, 2, 2, 3])
    split = {name: np.asarray(values)[cuts] for name, values in whole.items()}
    split["radii"] = np.array([0.05, 0.078, 0.080, 0.081, 0.084, 0.086, 0.092])
    source_pos, electrode_pos = in_brain(whole, 0.9), on_scalp(whole)
    reference = np.asarray(sphere_eeg(source_pos, electrode_pos, n_terms=N_TERMS, **whole))
    lead_field = sphere_eeg(source_pos, electrode_pos, n_terms=N_TERMS, **split)
    assert relative_error(lead_field, reference) < 1e-12


@pytest.mark.slow
def test_thin_isotropic_layers_become_an_anisotropic_shell_at_second_order():
    """Alternating conductivities: harmonic mean along the radius, arithmetic mean across."""
    low, high = 0.01, 0.09
    bulk = {"radii": [0.08, 0.086, 0.092]} | {
        "sigma_radial": [0.33, 2 * low * high / (low + high), 0.33],
        "sigma_tangential": [0.33, 0.5 * (low + high), 0.33],
    }
    source_pos, electrode_pos = in_brain(bulk, 0.8), on_scalp(bulk)
    reference = np.asarray(sphere_eeg(source_pos, electrode_pos, **bulk))
    errors = []
    for n_cells in (4, 8):
        # Each cell is symmetric, half a layer either side of a whole one; halves of
        # neighbouring cells join. That makes the limit second order.
        width = 0.006 / n_cells
        edges = 0.08 + width * np.add.outer(np.arange(n_cells), [0.25, 0.75]).ravel()
        radii = np.concatenate([[0.08], edges, [0.086, 0.092]])
        sigma = np.concatenate([[0.33], np.tile([low, high], n_cells), [low, 0.33]])
        layers = {"radii": radii, "sigma_radial": sigma, "sigma_tangential": sigma}
        errors.append(relative_error(sphere_eeg(source_pos, electrode_pos, **layers), reference))
    assert errors[1] < 1e-3
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.15)


def felt(source_pos, point):
    """Lead field of one electrode and its derivative with respect to the electrode's place."""

    def lead_field(point):
        return sphere_eeg(source_pos, point[None], n_terms=300, **FOUR_SHELLS)[0]

    point = jnp.asarray(point)
    return np.asarray(lead_field(point)), np.asarray(jax.jacfwd(lead_field)(point))


def test_current_is_continuous_and_does_not_leave():
    moment, source_pos = np.array([1.0, -0.5, 2.0]), in_brain(FOUR_SHELLS, 0.9)[0]
    up = directions(1, 5)[0]

    def potential_and_slope(radius):
        lead_field, gradient = felt(source_pos, radius * up)
        return lead_field @ moment, moment @ gradient @ up

    sigma = FOUR_SHELLS["sigma_radial"]
    for radius, inner, outer in zip(FOUR_SHELLS["radii"][:-1], sigma[:-1], sigma[1:], strict=True):
        # A picometre either side; the slope itself changes over a millimetre.
        below, above = potential_and_slope(radius - 1e-12), potential_and_slope(radius + 1e-12)
        assert below[0] == pytest.approx(above[0], rel=1e-6)
        assert inner * below[1] == pytest.approx(outer * above[1], rel=1e-6)
    within = abs(potential_and_slope(0.089)[1])
    assert abs(potential_and_slope(0.092 * (1 - 1e-12))[1]) < 1e-6 * within


def test_reciprocity_of_sources_and_sensors():
    """A dipole at a felt by a dipole at b is the one at b felt by the one at a."""
    a, b = 0.06 * directions(1, 6)[0], 0.088 * directions(1, 7)[0]
    there, back = felt(a, b)[1], felt(b, a)[1]
    np.testing.assert_allclose(there, back.T, rtol=1e-9, atol=1e-11 * np.abs(there).max())


def test_the_middle_of_a_huge_sphere_is_unbounded():
    source_pos = 0.004 * directions(3, 8)
    contact_pos = 0.004 * directions(5, 9) + np.array([0.01, 0, 0])
    shells = {"radii": [0.5, 1.0], "sigma_radial": [0.33, 0.33], "sigma_tangential": [0.33, 0.33]}
    lead_field = sphere_eeg(source_pos, contact_pos, **shells)
    # The boundary adds the potential of images: (0.01 m / 1 m)^3 of the direct one.
    reference = np.asarray(unbounded(source_pos, contact_pos, conductivity=0.33))
    assert relative_error(lead_field, reference) < 1e-5


@pytest.mark.parametrize("place", ["centre", "axis", "deep", "outer shell"])
def test_values_and_derivatives_are_finite_and_right(place):
    electrode_pos = on_scalp(FOUR_SHELLS)
    pos = {
        "centre": np.zeros(3),
        "axis": 0.7 * electrode_pos[0],
        "deep": np.array([0.0, 0.03, 0.05]),
        "outer shell": 0.088 * directions(1, 2)[0],
    }[place]

    def lead_field(pos):
        return sphere_eeg(pos, electrode_pos, n_terms=N_TERMS, **FOUR_SHELLS)

    gradient = jax.jacrev(lead_field)(pos)
    step = 2e-6  # m: centred difference good to (step / 4 mm)^2 = 2.5e-7
    shifts = step * np.eye(3)
    difference = (lead_field(pos + shifts) - lead_field(pos - shifts)) / (2 * step)
    difference = np.moveaxis(difference, 1, 2)  # (channel, moment, position)
    size = np.abs(difference).max()
    np.testing.assert_allclose(gradient, difference, atol=1e-6 * size, rtol=0)


@pytest.mark.slow
def test_derivative_with_respect_to_conductivities():
    source_pos, electrode_pos = in_brain(FOUR_SHELLS, 0.7, 1)[0], on_scalp(FOUR_SHELLS, 4)

    def lead_field(log_radial, log_tangential):
        shells = {"sigma_radial": jnp.exp(log_radial), "sigma_tangential": jnp.exp(log_tangential)}
        return sphere_eeg(source_pos, electrode_pos, radii=FOUR_SHELLS["radii"], **shells)

    logs = [np.log(FOUR_SHELLS[name]) for name in ("sigma_radial", "sigma_tangential")]
    exact = jax.jacfwd(lead_field, argnums=(0, 1))(*logs)
    for argument in (0, 1):
        for shell in range(4):
            shifted = [np.array([logs[0], logs[1]]) for _ in range(2)]
            shifted[0][argument, shell] += 1e-5
            shifted[1][argument, shell] -= 1e-5
            difference = (lead_field(*shifted[0]) - lead_field(*shifted[1])) / 2e-5
            # Tolerance: rounding of the difference, 1e-12 / 1e-5, of the lead field's size.
            size = np.abs(lead_field(*logs)).max()
            np.testing.assert_allclose(
                exact[argument][..., shell], difference, atol=1e-6 * size, rtol=0
            )


def test_single_precision():
    source_pos, electrode_pos = in_brain(FOUR_SHELLS, 0.95), on_scalp(FOUR_SHELLS)
    reference = np.asarray(sphere_eeg(source_pos, electrode_pos, n_terms=N_TERMS, **FOUR_SHELLS))
    single = (x.astype(np.float32) for x in (source_pos, electrode_pos))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        lead_field = sphere_eeg(*single, n_terms=N_TERMS, **FOUR_SHELLS)
    assert lead_field.dtype == np.float32
    assert relative_error(lead_field, reference) < 1e-5


@pytest.mark.slow
def test_derivatives_at_the_centre_are_finite_in_single_precision():
    electrode_pos = on_scalp(FOUR_SHELLS).astype(np.float32)

    def lead_field(pos):
        return sphere_eeg(pos, electrode_pos, n_terms=N_TERMS, **FOUR_SHELLS)

    assert np.all(np.isfinite(jax.jacrev(lead_field)(np.zeros(3, np.float32))))


def test_transformations_agree_with_the_plain_call():
    source_pos, electrode_pos = in_brain(THREE_SHELLS, 0.6), on_scalp(THREE_SHELLS)

    def lead_field(source_pos):
        return sphere_eeg(source_pos, electrode_pos, n_terms=N_TERMS, **THREE_SHELLS)

    plain = np.asarray(lead_field(source_pos))
    mapped = jax.jit(jax.vmap(lead_field, out_axes=1))(source_pos)
    assert relative_error(mapped, plain) < 1e-12
    assert relative_error(lead_field(source_pos[2])[:, None], plain[:, 2:3]) < 1e-12


@pytest.mark.slow
def test_only_differences_of_the_potential_depend_on_where_it_is_zero():
    """Zero mean over the outermost sphere, by a quadrature exact to high order."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    angle = 2 * np.pi * np.arange(120) / 120
    sine = np.sqrt(1 - nodes**2)[:, None]
    points = np.stack(
        [sine * np.cos(angle), sine * np.sin(angle), nodes[:, None] + 0 * angle], axis=-1
    ).reshape(-1, 3)
    weights = np.repeat(weights, 120) / 240
    lead_field = sphere_eeg(in_brain(THREE_SHELLS, 0.5, 1), 0.092 * points, **THREE_SHELLS)
    mean = np.einsum("c,csk->sk", weights, lead_field)
    assert np.abs(mean).max() < 1e-12 * np.abs(lead_field).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": [0.086, 0.080, 0.090, 0.092]}, "radii must increase"),
        ({"radii": [0.080, 0.086]}, "sigma_radial must have shape .n_shells,., .* 2 radii"),
        ({"radii": [80.0, 83.0, 86.0, 92.0]}, "radii .*millimetres"),
        ({"radii": [-0.01, 0.08, 0.086, 0.092]}, "radii must be positive"),
        ({"sigma_radial": [0.33, 0.0, 0.33, 0.33]}, "sigma_radial must be positive"),
        ({"sigma_tangential": [0.33, -1.0, 0.33, 0.33]}, "sigma_tangential must be positive"),
        ({"sigma_tangential": [0.33, np.nan, 0.33, 0.33]}, "sigma_tangential has 1 NaN"),
        ({"source_pos": np.ones((1, 4))}, "source_pos must have shape"),
        ({"source_pos": np.array([[0, 0, 0.1], [0, 0, 0]])}, "source_pos has 1 of 2 sources out"),
        ({"source_pos": np.array([[0, 0, 50.0]])}, "source_pos .*millimetres"),
        ({"electrode_pos": 0.095 * directions(6)}, "electrode_pos has 6 of 6 electrodes outside"),
        ({"electrode_pos": np.zeros(3)}, "electrode_pos must have shape"),
        (
            {"source_pos": 0.07 * directions(2), "electrode_pos": 0.07 * directions(5)},
            "source_pos and electrode_pos coincide in [0-9] pairs",
        ),
        ({"n_terms": 0}, "n_terms must be an integer of at least 1"),
        (
            {"source_pos": np.array([[0, 0, 0.0919999]])},
            "pairs of source_pos and electrode_pos converge too slowly",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "source_pos": in_brain(THREE_SHELLS, 0.5),
        "electrode_pos": on_scalp(THREE_SHELLS, 6),
    }
    with pytest.raises(ValueError, match=message):
        sphere_eeg(**(arguments | THREE_SHELLS | change))
