"""The posterior of a fixed number of dipoles at continuous positions."""

import dataclasses
import functools

import numpy as np

from ..core import ports
from ..core.checks import check_count
from ..core.status import Status
from ..inference import off_grid
from ..inference.off_grid_operator import evaluate
from ..models.orientation import OrientedField
from ..models.problem import Problem
from ..models.static_dipoles import StaticDipoles
from .moments import conditional_moments

__all__ = ["OffGridDipole", "OffGridPosterior"]

# Draws whose moments are computed; see `bayes_esi.posterior.dipoles`.
_N_MOMENT_DRAWS = 1000
# Chains agree up to here: Vehtari et al. 2021, doi:10.1214/20-BA1221.
_MAX_R_HAT = 1.01
# Divergences mean that a part of the posterior is too curved for the step. One in a thousand
# draws happens to chains that start in a tail and does not bias a mean by what can be seen.
_MAX_DIVERGING = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class OffGridDipole:
    """One dipole, matched across draws.

    Attributes
    ----------
    probability : float
        One: their number is given.
    pos : (3,)
        Posterior mean position, in m.
    pos_cov : (3, 3)
        Posterior covariance of the position, in m^2.
    moment_mean, moment_std : (3, n_times)
        In A·m, along the axes of space.
    explained_power : float
        Whitened power of its field, summed over channels and samples.
    """

    pos: np.ndarray
    pos_cov: np.ndarray
    moment_mean: np.ndarray
    moment_std: np.ndarray
    explained_power: float
    probability: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class OffGridPosterior:
    """What the data say about positions and moments of a given number of dipoles.

    Attributes
    ----------
    problem : Problem
    model : StaticDipoles
    draws : bayes_esi.inference.off_grid.Draws
    """

    problem: Problem
    model: StaticDipoles
    draws: off_grid.Draws

    @classmethod
    def sample(cls, key, model, problem, start, operator=None, **options):
        """Run the chains; arguments as in `bayes_esi.inference.off_grid.run`."""
        draws = off_grid.run(key, model, problem, start, operator, **options)
        return cls(problem, model, draws)

    @property
    def n_dipoles(self):
        """Number of dipoles, which is given."""
        return self.draws.pos.shape[2]

    @functools.cached_property
    def status(self):
        """Whether chains agree, and trajectories kept to the posterior."""
        draws = self.draws
        if not np.all(np.isfinite(draws.log_likelihood)):
            return Status.NOT_FINITE
        if draws.diverging.mean() > _MAX_DIVERGING:
            return Status.DIVERGENCES
        return Status.OK if self.r_hat <= _MAX_R_HAT else Status.CHAINS_DISAGREE

    @functools.cached_property
    def r_hat(self):
        """Largest R-hat of positions and scales across chains, or halves of a single one."""
        import arviz as az

        unknown = {name: values for name, values in self._parameters.items() if np.ptp(values) > 0}
        if len(self.draws.pos) == 1:
            unknown = {
                name: np.stack(np.array_split(v[0][: v.size // 2 * 2], 2))
                for name, v in unknown.items()
            }
        table = az.rhat(_tree(unknown))
        return float(max(float(table[name]) for name in unknown))

    def dipoles(self):
        """List the dipoles, the one that explains most of the data first.

        Returns
        -------
        list of OffGridDipole
        """
        return list(self._dipoles)

    def summary(self):
        """Tabulate the dipoles: position, its spread along each axis and in total, peak.

        Returns
        -------
        pandas.DataFrame
            One row for each dipole; positions and spreads in mm, moments in nA·m, times in s.
            Status, largest R-hat and number of divergences are in ``.attrs``.
        """
        import pandas as pd

        rows = []
        for dipole in self.dipoles():
            amplitude = np.linalg.norm(dipole.moment_mean, axis=0)
            peak = int(np.argmax(amplitude))
            direction = dipole.moment_mean[:, peak] / max(amplitude[peak], 1e-300)
            spread = np.sqrt(np.diag(dipole.pos_cov))
            rows.append(
                {
                    **dict(zip(("x_mm", "y_mm", "z_mm"), 1e3 * dipole.pos, strict=True)),
                    **dict(zip(("x_std_mm", "y_std_mm", "z_std_mm"), 1e3 * spread, strict=True)),
                    "spread_mm": 1e3 * np.linalg.norm(spread),
                    "peak_time_s": self.problem.times[peak],
                    "peak_nAm": 1e9 * amplitude[peak],
                    "peak_std_nAm": 1e9 * np.linalg.norm(direction * dipole.moment_std[:, peak]),
                }
            )
        frame = pd.DataFrame(rows)
        frame.index = pd.RangeIndex(1, len(frame) + 1, name="dipole")
        frame.attrs = {
            "status": self.status.name,
            "r_hat": self.r_hat,
            "n_divergences": int(self.draws.diverging.sum()),
        }
        return frame

    def diagnostics(self):
        """Summarise convergence across chains.

        Returns
        -------
        pandas.DataFrame
            ArviZ summary (mean, R-hat, effective sample size) of positions in mm, scales and log
            likelihood. What is known has NaN for R-hat.
        """
        import arviz as az

        values = self._parameters | {"log_likelihood": self.draws.log_likelihood}
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing varies in a constant
            return az.summary(_tree(values))

    def to_datatree(self, n_draws=100):
        """Write the posterior as an ArviZ DataTree.

        Parameters
        ----------
        n_draws : int
            Draws kept of each chain, evenly spaced.

        Returns
        -------
        xarray.DataTree
            Groups posterior, sample_stats, posterior_predictive, observed_data and log_likelihood
            (one value for each sample, moments integrated out). Data are in the units of the
            recording, on the range of the noise covariance.
        """
        import xarray as xr

        draws, problem = self.draws, self.problem
        n_chains, n_available = draws.moment_std.shape
        n_draws = min(check_count("n_draws", n_draws), n_available)
        kept = np.unique(np.linspace(0, n_available - 1, n_draws).astype(int))
        pooled = (np.arange(n_chains)[:, None] * n_available + kept).ravel()
        moments = self.moments_of(pooled)
        chain, time = ["chain", "draw"], {"time": problem.times}
        coords = {"chain": np.arange(n_chains), "draw": kept}
        shape = (n_chains, len(kept))
        axes = ["x", "y", "z"]
        sampled = xr.Dataset(
            {
                "pos": ([*chain, "dipole", "axis"], draws.pos[:, kept]),
                "moment_mean": (
                    [*chain, "dipole", "axis", "time"],
                    moments.mean.reshape(*shape, *moments.mean.shape[1:]),
                ),
                "moment_std_given_place": (
                    [*chain, "dipole", "axis"],
                    moments.std.reshape(*shape, *moments.std.shape[1:]),
                ),
                "moment_std": (chain, draws.moment_std[:, kept]),
                "noise_std": ([*chain, "group"], draws.noise_std[:, kept]),
            },
            coords={
                **coords,
                **time,
                "dipole": np.arange(1, self.n_dipoles + 1),
                "axis": axes,
                "group": list(problem.group_names),
            },
        )
        stats = {name: values[:, kept] for name, values in draws.sample_stats.items()}
        stats |= {
            "diverging": draws.diverging[:, kept],
            "log_likelihood": draws.log_likelihood[:, kept],
        }
        colouring = np.linalg.pinv(problem.whitener)
        noise = draws.noise_std[:, kept].reshape(len(pooled), -1)[:, problem.noise_group]
        rng = np.random.default_rng(0)
        # A new recording of the same response: the fitted field plus fresh noise.
        replicate = moments.fitted + noise[:, :, None] * rng.standard_normal(moments.fitted.shape)
        predicted = np.einsum("cr,drt->dct", colouring, replicate, optimize=True)
        predicted = predicted.reshape(*shape, *predicted.shape[1:]).astype(np.float32)
        channel = {"channel": list(problem.ch_names)}
        per_sample = moments.log_likelihood + problem.log_jacobian / problem.n_times
        return xr.DataTree.from_dict(
            {
                "posterior": sampled,
                "sample_stats": xr.Dataset(
                    {name: (chain, values) for name, values in stats.items()}, coords=coords
                ),
                "posterior_predictive": xr.Dataset(
                    {"data": ([*chain, "channel", "time"], predicted)},
                    coords={**coords, **channel, **time},
                ),
                "observed_data": xr.Dataset(
                    {"data": (["channel", "time"], colouring @ problem.data)},
                    coords={**channel, **time},
                ),
                "log_likelihood": xr.Dataset(
                    {"data": ([*chain, "time"], per_sample.reshape(*shape, -1))},
                    coords={**coords, **time},
                ),
            }
        )

    def to_mne(self):
        """Give the dipoles as MNE objects: list of mne.Dipole."""
        return ports.perform(self, "to_mne")

    def moments_of(self, draws):
        """Conditional moments of some pooled draws (see `ConditionalMoments`)."""
        pos = self._pooled(self.draws.pos)[draws]
        fields = np.asarray(evaluate(self.draws.operator, pos))  # (n, rank, k, 3)
        n_draws, rank, n_dipoles, _ = fields.shape
        # The dipoles of all draws as places of a grid of their own.
        design = OrientedField(
            np.moveaxis(fields, 0, 1).reshape(rank, -1, 3),
            np.broadcast_to(np.eye(3), (n_draws * n_dipoles, 3, 3)),
        )
        return conditional_moments(
            self.problem,
            design,
            np.arange(n_draws * n_dipoles).reshape(n_draws, n_dipoles),
            np.ones((n_draws, n_dipoles), bool),
            self._pooled(self.draws.moment_std)[draws],
            self._pooled(self.draws.noise_std)[draws],
        )

    def __repr__(self):
        n_chains, n_draws = self.draws.moment_std.shape
        return (
            f"<OffGridPosterior | NUTS, {self.status.name}: {self.n_dipoles} "
            f"dipole{'' if self.n_dipoles == 1 else 's'}, {n_chains} x {n_draws} draws, "
            f"R-hat {self.r_hat:.3f}, {int(self.draws.diverging.sum())} divergences>"
        )

    # ---------------------------------------------------------------- what the answers share

    @functools.cached_property
    def _dipoles(self):
        n_pooled = self.draws.moment_std.size
        chosen = np.unique(np.linspace(0, n_pooled - 1, min(n_pooled, _N_MOMENT_DRAWS)).astype(int))
        moments, pos = self.moments_of(chosen), self._pooled(self.draws.pos)
        mean = moments.mean.mean(axis=0)
        std = np.sqrt(moments.mean.var(axis=0) + np.mean(moments.std**2, axis=0)[..., None])
        power = moments.power.mean(axis=0)
        return tuple(
            OffGridDipole(
                pos=pos[:, i].mean(axis=0),
                pos_cov=np.cov(pos[:, i].T),
                moment_mean=mean[i],
                moment_std=std[i],
                explained_power=float(power[i]),
            )
            for i in np.argsort(-power, kind="stable")
        )

    @property
    def _parameters(self):
        """Scalar parameters by name: (n_chains, n_draws) each."""
        draws = self.draws
        parameters = {
            f"{axis}_mm[{i + 1}]": 1e3 * draws.pos[:, :, i, a]
            for i in range(self.n_dipoles)
            for a, axis in enumerate("xyz")
        }
        parameters["moment_std_nAm"] = 1e9 * draws.moment_std
        for i, name in enumerate(self.problem.group_names):
            parameters[f"noise_std[{name}]"] = draws.noise_std[:, :, i]
        return parameters

    @staticmethod
    def _pooled(array):
        return array.reshape(-1, *array.shape[2:])


def _tree(variables):
    import xarray as xr

    dataset = xr.Dataset({name: (["chain", "draw"], value) for name, value in variables.items()})
    return xr.DataTree.from_dict({"posterior": dataset})
