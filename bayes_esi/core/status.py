"""Result codes: what a number is worth, why, and what to do about it.

Compiled code never raises and never speaks through NaN. One place, the host
side of a run, turns what happened into a `Status`; `infer` raises
`InferenceError` unless the status is trustworthy or the caller said otherwise.
"""

import enum

__all__ = ["InferenceError", "Status"]


class Status(enum.Enum):
    """Outcome of an inference; `cause` and `remedy` are sentences for the user."""

    OK = ("the run completed and its checks passed", "nothing to do")
    NOT_FINITE = (
        "the log likelihood became NaN or infinite",
        "look for extreme values in data or lead field, or compute in float64 "
        "(jax.config.update('jax_enable_x64', True))",
    )
    TEMPERING_STALLED = (
        "the inverse temperature did not reach 1 within max_steps",
        "raise max_steps, or lower cess_target for larger temperature steps",
    )
    RUNS_DISAGREE = (
        "independent runs gave different answers (their log evidences or dipole numbers differ "
        "by more than chance)",
        "raise n_particles or n_sweeps, of chains n_burn_in; for dipoles in time try method='smc' "
        "or 'particle_gibbs'; do not interpret this posterior",
    )
    NOT_MIXED = (
        "at some temperature the moves hardly changed the population, so all runs may share one "
        "error that their agreement hides",
        "raise max_rounds or n_moves",
    )
    SCALE_AT_BOUND = (
        "an unknown scale (source_std, noise_std or alpha) ran into the end of its prior or grid, "
        "so that and not the data set it",
        "check that the window holds a response and that noise_cov is that of the same data; or "
        "give the scale",
    )
    NO_CORNER = (
        "the L-curve has no corner: its curvature is nowhere positive, or largest at an end",
        "choose the scale by evidence or GCV",
    )
    EVIDENCE_UNCERTAIN = (
        "the quadrature over unknown hyper-parameters leaves an error of more than 3 nats in the "
        "log evidence",
        "do not compare this evidence; give some of the unknown scales, depth or time scale, or "
        "infer with method='nuts' for the hyper-parameters themselves",
    )
    CHAINS_DISAGREE = (
        "chains of the sampler disagree (R-hat above 1.01)",
        "raise n_warmup and n_samples, or start from a posterior of one mode; do not interpret "
        "this posterior",
    )
    DIVERGENCES = (
        "trajectories of the sampler left the posterior where it is too curved for their step",
        "raise target_acceptance where the method has it, or give more of the model as known",
    )
    NOT_CONVERGED = (
        "the iteration did not reach its tolerance within max_steps",
        "raise max_steps or tol where the method has them, or give some of the unknown "
        "hyper-parameters",
    )
    APPROXIMATE = (
        "the method is a published approximation kept for comparison: its uncertainty and evidence "
        "are not those of the model",
        "use the exact method for conclusions",
    )
    PARTICLES_COLLAPSED = (
        "at some sample less than two effective particles were left, so the law there hangs on one "
        "hypothesis",
        "raise n_particles; if it persists, check noise_cov and that the forward model explains "
        "the data",
    )
    TOO_MANY_DIPOLES = (
        "more than 5 % of the posterior sits at the largest number of sources, so the truncation "
        "shapes the answer",
        "raise max_dipoles (and n_tracks, if it was given; of sparse sources max_active), or check "
        "the noise covariance: noise that is underestimated is explained by extra dipoles",
    )

    @property
    def cause(self):
        """Why the result has this status."""
        return self.value[0]

    @property
    def remedy(self):
        """What to change before trying again."""
        return self.value[1]

    @property
    def is_trustworthy(self):
        """Whether the numbers of this result may be used."""
        return self is Status.OK


class InferenceError(RuntimeError):
    """An inference ended without a result that can be trusted.

    Attributes
    ----------
    status : Status
        What happened.
    posterior : object or None
        The untrusted result, so that nothing computed is lost.
    """

    def __init__(self, status, posterior=None):
        self.status = status
        self.posterior = posterior
        super().__init__(
            f"{status.name}: {status.cause}. Remedy: {status.remedy}. "
            "(throw=False returns the result as it is, with this status.)"
        )
