"""Whitened data of a few dipoles with free moments, the moments integrated out.

    y_t = sum_j G_j q_j(t) + noise_t,    q_j(t) ~ N(0, s^2 I),    noise_t ~ N(0, N)
    y_t ~ N(0, s^2 G G' + N),    independent over samples t

with G (m x dk) the lead fields of k dipoles side by side, s = `moment_std`, and N diagonal with
noise_std^2 of the group of each row. With F = s N^-1/2 G, Z = N^-1/2 Y and H = I + F'F,

    log p(Y) = -T/2 (m log 2 pi + log|N| + log|H|) - 1/2 (|Z - F B|^2 + |B|^2),    H B = F'Z

B is the posterior mean of the moments in units of s. The quadratic form is written as what its
minimum over B is, a sum of squares: tr(Z'Z) - tr(Z'F H^-1 F'Z) would cancel in single precision.

Cost O(m dk (dk + n_times)) for each value.

Reference: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

__all__ = ["DipoleData"]


class DipoleData(Distribution):
    """Law of the data of k dipoles, over whitened data (m, n_times).

    Parameters
    ----------
    fields : (..., m, k, d) array
        Whitened lead field of each dipole along d orientations, in data units (one) for each unit
        of moment. No dipole, k = 0, is noise alone.
    moment_std : (...) array
        Standard deviation of each moment component, in the unit of moment.
    noise_std : scalar or (..., n_groups) array
        Noise level of each channel group, or of all rows.
    noise_group : (m,) int array, optional
        Group of each row; by default all rows are of the first.
    n_times : int
        Samples of the data.
    log_jacobian : scalar or (...) array
        Added to the log density, in nats: that of whitening turns it into the density of the data
        in their own units.

    Raises
    ------
    ValueError
        On shapes that do not match.

    Notes
    -----
    Leading axes are batch axes and broadcast. `from_problem` takes SI units.
    """

    arg_constraints = {  # noqa: RUF012
        "fields": constraints.independent(constraints.real, 3),
        "moment_std": constraints.positive,
        "noise_std": constraints.independent(constraints.positive, 1),
        "noise_group": constraints.independent(constraints.nonnegative_integer, 1),
        "log_jacobian": constraints.real,
    }
    support = constraints.real_matrix
    reparametrized_params = ["fields", "moment_std", "noise_std"]  # noqa: RUF012

    def __init__(
        self,
        fields,
        moment_std,
        noise_std,
        noise_group=None,
        n_times=1,
        log_jacobian=0.0,
        *,
        validate_args=None,
    ):
        if jnp.ndim(fields) < 3:
            raise ValueError(
                f"fields must have shape (..., m, k, d), lead fields of k dipoles, got "
                f"{jnp.shape(fields)}."
            )
        m = jnp.shape(fields)[-3]
        if jnp.ndim(noise_std) == 0:
            noise_std = jnp.reshape(noise_std, (1,))
        n_groups = jnp.shape(noise_std)[-1]
        if noise_group is None:
            noise_group = np.zeros(m, np.int32)
        elif jnp.shape(noise_group)[-1:] != (m,):
            raise ValueError(
                f"noise_group must name a group for each of {m} rows of fields, got shape "
                f"{jnp.shape(noise_group)}."
            )
        elif n_groups == 1:
            noise_group = jnp.zeros_like(noise_group)  # one level for all groups
        elif isinstance(noise_group, np.ndarray) and noise_group.max(initial=0) >= n_groups:
            raise ValueError(
                f"noise_std must have a value for each of {noise_group.max() + 1} groups of "
                f"noise_group, or one for all, got {n_groups}."
            )
        arrays = (fields, moment_std, noise_std, noise_group, log_jacobian)
        shapes = [
            jnp.shape(array)[: jnp.ndim(array) - n]
            for array, n in zip(arrays, _EVENT_DIMS, strict=True)
        ]
        batch_shape = jnp.broadcast_shapes(*shapes)
        # Numbers of Python take the precision of the fields, so that they cannot raise it.
        arrays = [
            jnp.asarray(array, jnp.result_type(fields)) if isinstance(array, float) else array
            for array in arrays
        ]
        # Axes of length one on the left let vmap add its own in front of all alike.
        padded = [
            jnp.reshape(array, (1,) * (len(batch_shape) - len(shape)) + jnp.shape(array))
            for array, shape in zip(arrays, shapes, strict=True)
        ]
        self.fields, self.moment_std, self.noise_std, self.noise_group, self.log_jacobian = padded
        super().__init__(batch_shape, (m, int(n_times)), validate_args=validate_args)

    @classmethod
    def from_problem(
        cls, problem, moment_std, noise_std=1.0, *, places=None, fields=None, validate_args=None
    ):
        """Law of the data of a problem for dipoles at some places.

        Parameters
        ----------
        problem : Problem
        moment_std : (...) array
            In A·m.
        noise_std : scalar or (..., n_groups) array
            Relative to the noise covariance of the problem.
        places : (k,) int array, optional
            Source numbers.
        fields : (..., rank, k, d) array, optional
            Instead of `places`: whitened lead fields in units of `problem.moment_unit`, such as
            those of `bayes_esi.inference.off_grid_operator`.
        validate_args : bool, optional

        Returns
        -------
        DipoleData
            `log_prob(problem.data)` is the log density of the data in their own units, in nats.

        Raises
        ------
        ValueError
            If not exactly one of `places` and `fields` is given, places are no source numbers, or
            fields or noise levels do not fit the problem.
        """
        if (places is None) == (fields is None):
            raise ValueError("give either places, source numbers, or fields, lead fields.")
        rank = problem.data.shape[0]
        if places is not None:
            places = np.asarray(places)
            is_number = places.ndim == 1 and places.dtype.kind in "iu"
            if not is_number or np.any((places < 0) | (places >= problem.n_sources)):
                raise ValueError(
                    f"places must be a list of source numbers, 0 to {problem.n_sources - 1}, got "
                    f"{places!r}."
                )
            fields = problem.lead_field[:, places]
        if jnp.ndim(fields) < 3 or jnp.shape(fields)[-3] != rank:
            raise ValueError(
                f"fields must have shape (..., {rank}, k, d), lead fields of k dipoles on the "
                f"whitened rows of the problem, got {jnp.shape(fields)}."
            )
        if jnp.ndim(noise_std) and jnp.shape(noise_std)[-1] not in (1, problem.n_groups):
            raise ValueError(
                f"noise_std must be a scalar or have a value for each of {problem.n_groups} "
                f"channel groups, got shape {jnp.shape(noise_std)}."
            )
        return cls(
            fields,
            moment_std / float(problem.moment_unit),
            noise_std,
            problem.noise_group,
            problem.n_times,
            float(problem.log_jacobian),
            validate_args=validate_args,
        )

    @property
    def n_times(self):
        """Samples of the data."""
        return self.event_shape[1]

    @property
    def mean(self):
        """Zero."""
        return jnp.zeros(self.batch_shape + self.event_shape, self.fields.dtype)

    @property
    def variance(self):
        """Variance of each value of the data."""
        of_moments = self.moment_std[..., None] ** 2 * jnp.sum(self.fields**2, axis=(-2, -1))
        variance = (of_moments + self._row_std**2)[..., None]
        return jnp.broadcast_to(variance, self.batch_shape + self.event_shape)

    @property
    def _row_std(self):
        """Noise level of each row: (..., m)."""
        is_of = self.noise_group[..., None] == jnp.arange(self.noise_std.shape[-1])
        return jnp.sum(jnp.where(is_of, self.noise_std[..., None, :], 0), axis=-1)

    @property
    def _columns(self):
        """Lead fields side by side: (..., m, k d)."""
        *batch, m, k, d = self.fields.shape
        return jnp.reshape(self.fields, (*batch, m, k * d))

    @validate_sample
    def log_prob(self, value):
        """Log density of whitened data (..., m, n_times), in nats."""
        row_std = self._row_std[..., None]
        scaled = self.moment_std[..., None, None] * self._columns / row_std  # F
        data = value / row_std  # Z
        m, n_times = self.event_shape
        gram = jnp.swapaxes(scaled, -1, -2) @ scaled
        chol = jnp.linalg.cholesky(gram + jnp.eye(gram.shape[-1], dtype=gram.dtype))
        projected = jnp.swapaxes(scaled, -1, -2) @ data
        batch = jnp.broadcast_shapes(chol.shape[:-2], projected.shape[:-2])
        chol_wide = jnp.broadcast_to(chol, batch + chol.shape[-2:])
        projected = jnp.broadcast_to(projected, batch + projected.shape[-2:])
        moments = jax.scipy.linalg.cho_solve((chol_wide, True), projected)  # B
        misfit = jnp.sum((data - scaled @ moments) ** 2, axis=(-2, -1))
        quadratic = misfit + jnp.sum(moments**2, axis=(-2, -1))
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), axis=-1)
        log_det = log_det + 2 * jnp.sum(jnp.log(row_std[..., 0]), axis=-1)
        # The Jacobian comes last: it is the largest number and costs the digits.
        density = -0.5 * (n_times * (m * math.log(2 * math.pi) + log_det) + quadratic)
        return density + self.log_jacobian

    def sample(self, key, sample_shape=()):
        """Draws of whitened data: (*sample_shape, *batch_shape, m, n_times)."""
        key_moments, key_noise = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        dtype = jnp.result_type(self.fields, self.moment_std, self.noise_std)
        columns = self.moment_std[..., None, None] * self._columns
        moments = jax.random.normal(
            key_moments, (*shape, columns.shape[-1], self.n_times), dtype=dtype
        )
        noise = jax.random.normal(key_noise, shape + self.event_shape, dtype=dtype)
        return columns @ moments + self._row_std[..., None] * noise

    @classmethod
    def infer_shapes(cls, fields, moment_std, noise_std, noise_group=(), n_times=1, **others):
        """Batch and event shape from the shapes of parameters."""
        del noise_group
        shapes = (fields[:-3], moment_std, noise_std[:-1], others.get("log_jacobian", ()))
        return jnp.broadcast_shapes(*shapes), (fields[-3], n_times)


_EVENT_DIMS = tuple(
    0 if name in ("moment_std", "log_jacobian") else constraint.event_dim
    for name, constraint in DipoleData.arg_constraints.items()
)
