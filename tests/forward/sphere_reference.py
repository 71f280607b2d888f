"""An independent multi-shell sphere: one linear system per Legendre order and source radius.

The source's sphere is an interface across which the potential (radial dipole) or the current
(monopole) jumps; all constants of all shells are solved for at once. Nothing is shared with
the package's recursions.
"""

import numpy as np

RADII = np.array([0.080, 0.086, 0.092])
SIGMA = np.array([0.33, 0.33 / 80, 0.33])
SKULL = {"radii": [0.078, 0.080, 0.086, 0.092], "sigma_radial": [0.33, 1.79, 0.01, 0.33]}
FOUR_SHELLS = SKULL | {"sigma_tangential": [0.33, 1.79, 0.03, 0.33]}
THREE_SHELLS = {"radii": RADII, "sigma_radial": SIGMA, "sigma_tangential": SIGMA}


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
    for j, pos in enumerate(source_pos):
        r = np.linalg.norm(pos)
        up = pos / r
        cosine = towards @ up
        p, dp = legendre(cosine, n_terms)
        for n in range(1, n_terms + 1):
            shells = (radii, sigma_radial, sigma_tangential)
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
