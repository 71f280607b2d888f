"""Potential of a dipole in a sphere of anisotropic shells: the series and its terms.

In shell l with radial conductivity s_l and tangential conductivity k_l^2 s_l, solutions that
go with the Legendre polynomial P_n are combinations of r^v and r^(-v-1) with

    v = -1/2 + sqrt(1/4 + k_l^2 n (n + 1)).

Let f be the solution that is regular at the centre and g the one whose current does not leave
the outermost sphere, both with f and s r f'/f continuous over the interfaces. A unit monopole
at r' then gives at r, with r< and r> the smaller and the larger of the two radii and x the
cosine between them,

    V = 1/(4 pi) sum_n h_n S_n,      S_n = (r</r>)^n P_n(x),
    h_n = (2n + 1) F(r<) / (F(r>) W(r>)),  F = f / r^n,  W = r s (r f'/f - r g'/g),

and a dipole its derivative along r'. With Q_n = (r</r>)^(n-1) P_n'(x) and b_n the logarithmic
derivative of h_n S_n in r' (r f'/f for a source inside the electrode's radius, r g'/g outside),

    dV/dr' = 1/(4 pi) sum_n h_n { Q_n r / r>^2 + r' [ (b_n - n) S_n / r'^2 - c Q_{n-1} ] }

with c = (r</r>)^2 / r'^2. S_n and Q_n are polynomials in r.r'/r>^2 and
(r</r>)^2, and b_n = n in an isotropic innermost shell: no angle and no direction of r' appears,
hence nothing is singular at the centre or on the axis.

What the source would give in an unbounded medium of its own shell's conductivity is part of
the sum with h_n = 1 / (r> s). Where the electrode lies in the same shell that part is taken
out and added in closed form: it is the part that converges slowly, or not at all when the radii
are equal; the rest are mirror images beyond the interfaces.

Only ratios enter: F and both logarithmic derivatives come from coefficients of reflection
that are bounded, so no power overflows however many terms there are.

References: de Munck, Peters 1993, IEEE Transactions on Biomedical Engineering 40:1166
(anisotropic shells); Zhang 1995, doi:10.1088/0031-9155/40/3/001 (fast computation).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array, Float

__all__ = ["potential_lead_field"]


class _Shells(NamedTuple):
    """Terms of the two solutions for one order n: each (n_shells,)."""

    excess: Float[Array, " n_shells"]  # v - n
    up: Float[Array, " n_shells"]  # decaying part of f over its growing part, at the inner radius
    down: Float[Array, " n_shells"]  # growing part of g over its decaying part, at the outer radius
    log_scale: Float[Array, " n_shells"]  # log F at the outer radius, less that at the outermost


class _Place(NamedTuple):
    """A radius with what the terms of every order need to know of its shell."""

    radius: Array
    shell: Array
    log_inner: Array  # log of the shell's inner radius over this one
    log_outer: Array  # log of this radius over the shell's outer one
    conductivity: Array


@partial(jax.jit, static_argnames=("n_terms", "on_surface"))
def potential_lead_field(
    source_pos: Float[Array, "n_sources 3"],
    electrode_pos: Float[Array, "n_channels 3"],
    radii: Float[Array, " n_shells"],
    sigma_radial: Float[Array, " n_shells"],
    sigma_tangential: Float[Array, " n_shells"],
    *,
    n_terms: int,
    on_surface: bool,
) -> Float[Array, "n_channels n_sources 3"]:
    """Sum `n_terms` orders for every pair; SI units.

    Where all electrodes are `on_surface`, what depends on radii alone is computed once a source
    and not once a pair, and electrodes are moved to the surface along their radius.
    Cost O(n_terms n_channels n_sources), twenty operations a pair and term (thirty and three
    exponentials where electrodes lie at different depths).
    """
    tiny = jnp.finfo(source_pos.dtype).eps
    unit = radii[-1]
    radii = radii / unit
    source = [x[None, :] / unit for x in source_pos.T]
    electrode = [x[:, None] / unit for x in electrode_pos.T]
    square_s = jnp.maximum(sum(x * x for x in source), tiny**2)
    radius_s = jnp.sqrt(square_s)
    radius_e = jnp.sqrt(jnp.maximum(sum(x * x for x in electrode), tiny**2))
    if on_surface:
        electrode = [x / radius_e for x in electrode]
        radius_e = jnp.ones((1, 1), radius_e.dtype)
    at_source = _place(radius_s, radii, sigma_radial)
    at_electrode = _place(radius_e, radii, sigma_radial)

    is_inside = radius_s <= radius_e
    larger = jnp.where(is_inside, radius_e, radius_s)
    is_same = at_source.shell == at_electrode.shell
    direct = jnp.where(is_same, 1 / at_source.conductivity, 0)

    orders = jnp.arange(1, n_terms + 1, dtype=source_pos.dtype)
    shells = _shell_terms(orders, radii, sigma_radial, sigma_tangential)
    along_electrode, along_source = _sum_orders(
        orders,
        jax.tree.map(jnp.transpose, shells),  # an order a row
        at_source,
        at_electrode,
        sum(s * e for s, e in zip(source, electrode, strict=True)) / larger**2,
        direct,
    )
    # Order 0 carries no current: a source outside the electrode's radius lifts the potential
    # within, by the strength of a double layer spread over its sphere.
    layer = 1 / (at_source.conductivity * larger**3)
    along_source = along_source - jnp.where(is_inside | is_same, 0, layer)

    apart = [e - s for s, e in zip(source, electrode, strict=True)]
    distance2 = jnp.where(is_same, sum(x * x for x in apart), 1)
    unbounded = direct / (distance2 * jnp.sqrt(distance2))
    lead = [
        (along_electrode + unbounded) * e + (along_source - unbounded) * s
        for s, e in zip(source, electrode, strict=True)
    ]
    return jnp.stack(lead, axis=-1) / (4 * jnp.pi * unit**2)


def _sum_orders(orders, shells, at_source, at_electrode, tau, direct):
    """Multiples of the electrode's and of the source's position, less the unbounded medium's.

    `tau` is r.r'/r>^2, `direct` the inverse conductivity of the unbounded medium or zero.
    """
    is_inside = at_source.radius <= at_electrode.radius
    larger = jnp.where(is_inside, at_electrode.radius, at_source.radius)
    ratio2 = (jnp.where(is_inside, at_source.radius, at_electrode.radius) / larger) ** 2
    radius2 = at_source.radius**2
    before = ratio2 / radius2  # c of the module's docstring
    # Where F alone could overflow, deep in a shell of small tangential conductivity, the power
    # of the ratio has long vanished: the bound keeps infinity from meeting zero.
    bound = jnp.log(jnp.finfo(tau.dtype).max) / 2

    def add(carry, term):
        n, shell = term
        q, q_before, along_electrode, along_source = carry
        log_s, rise_s, fall_s = _solutions(n, shell, at_source)
        log_e, rise_e, fall_e = _solutions(n, shell, at_electrode)
        jump = jnp.where(
            is_inside,
            at_electrode.conductivity * (rise_e - fall_e),
            at_source.conductivity * (rise_s - fall_s),
        )
        log_ratio = jnp.where(is_inside, log_s - log_e, log_e - log_s)
        h = (2 * n + 1) * jnp.exp(jnp.minimum(log_ratio, bound)) / jump
        radial = jnp.where(is_inside, h * rise_s, h * fall_s + (2 * n + 1) * direct) / radius2
        h = h - direct
        s = (tau * q - ratio2 * q_before) / n
        along_electrode = along_electrode + h * q
        along_source = along_source + radial * s - h * before * q_before
        q_next = ((2 * n + 1) * tau * q - (n + 1) * ratio2 * q_before) / n
        return (q_next, q, along_electrode, along_source), None

    zero = jnp.zeros_like(tau)
    start = (jnp.ones_like(tau), zero, zero, zero)
    (_, _, along_electrode, along_source), _ = jax.lax.scan(add, start, (orders, shells))
    return along_electrode / larger**3, along_source / larger


def _place(radius, radii, conductivity):
    """Look up the shell of each radius; what lies on an interface belongs to the inner shell."""
    just_within = radius * (1 - 4 * jnp.finfo(radius.dtype).eps)
    shell = jnp.sum(just_within[:, :, None] > radii[None, None, :-1], axis=-1)
    return _Place(
        radius=radius,
        shell=shell,
        log_inner=jnp.log(_inner_radii(radii)[shell] / radius),
        log_outer=jnp.log(radius / radii[shell]),
        conductivity=conductivity[shell],
    )


def _inner_radii(radii):
    """Inner radius of each shell.

    Nothing is reflected at the centre, so that any radius would do for the innermost: one that
    is positive keeps its logarithm finite.
    """
    return jnp.concatenate([jnp.finfo(radii.dtype).eps ** 2 * radii[:1], radii[:-1]])


def _solutions(n, shell, place):
    """Log F, r f'/f - n and r g'/g - n at a place."""
    excess = shell.excess[place.shell]
    up = shell.up[place.shell] * jnp.exp((2 * (n + excess) + 1) * place.log_inner)
    down = shell.down[place.shell] * jnp.exp((2 * (n + excess) + 1) * place.log_outer)
    log_f = shell.log_scale[place.shell] + excess * place.log_outer + jnp.log1p(up)
    rise = (excess - (2 * n + excess + 1) * up) / (1 + up)
    fall = (excess * down - (2 * n + excess + 1)) / (1 + down)
    return log_f, rise, fall


def _shell_terms(n, radii, sigma_radial, sigma_tangential):
    """Reflections and scales of all shells for orders n (n_terms,): arrays (n_shells, n_terms)."""
    ratio = (sigma_tangential / sigma_radial)[:, None]
    n = n[None]
    product = n * (n + 1)
    # v - n without the cancellation: exactly zero in an isotropic shell.
    excess = (ratio - 1) * product / (jnp.sqrt(0.25 + ratio * product) + n + 0.5)
    power = n + excess
    log_thickness = jnp.log(_inner_radii(radii) / radii)[:, None]
    across = jnp.exp((2 * power + 1) * log_thickness)
    shells = (sigma_radial, power, across, excess * log_thickness)

    def outwards(current, shell):  # what the shells within reflect
        s, v, q, _ = shell
        up = (s * v - current) / (s * (v + 1) + current)
        return s * (v - (v + 1) * up * q) / (1 + up * q), up

    def inwards(carry, shell):  # what the shells without reflect, and how f has grown
        (current, log_f), ((s, v, q, log_power), up) = carry, shell
        down = (current + s * (v + 1)) / (s * v - current)
        current = s * (v * down * q - (v + 1)) / (1 + down * q)
        log_scale = log_f - jnp.log1p(up * q)
        return (current, log_scale + log_power + jnp.log1p(up)), (down, log_scale)

    # Nothing is reflected at the centre; no current crosses the outermost radius.
    zero = jnp.zeros_like(power[0])
    _, up = jax.lax.scan(outwards, sigma_radial[0] * power[0], shells)
    _, (down, log_scale) = jax.lax.scan(inwards, (zero, zero), (shells, up), reverse=True)
    return _Shells(excess, up, down, log_scale)
