"""eLORETA beside a posterior: the same scales and law in time, weights that locate without error.

    R = blockdiag(W_j^-1),      W_j = (G_j' (G R G' + lambda2 I)^-1 G_j)^(1/2)

scaled to trace(G R G') = rank, with the `lambda2` and the noise levels of the posterior. See
`inference.eloreta` for the fixed point.
"""

import numpy as np

from ..core.status import InferenceError, Status
from ..inference import eloreta, separable
from .separable_sources import SeparableSources

__all__ = ["eloreta_sources"]


# Largest residual of the fixed point that passes: what locates single sources to rounding is far
# below, and single precision reaches it.
_TOLERANCE = 1e-4


class _WeightedPrior:
    """The spatial prior with given blocks, in the shape that conditioning asks for."""

    def __init__(self, field, blocks):
        self.field, self.blocks = field, blocks
        self._lead_field = np.asarray(field.lead_field, np.float64)

    def _cross(self):
        return np.einsum("sde,rse->sdr", self.blocks, self._lead_field, optimize=True)

    def gram(self, depth, smoothness):
        del depth, smoothness
        return np.tensordot(self._lead_field, self._cross(), axes=([1, 2], [0, 1]))

    def cross(self, depth, smoothness):
        del depth, smoothness
        return np.einsum("sxd,sdr->sxr", self.field.own_frames, self._cross(), optimize=True)


def eloreta_sources(posterior):
    """Answers of the posterior's model with eLORETA weights as its spatial prior.

    Parameters
    ----------
    posterior : SourcePosterior
        Of a model whose time and space separate, at one set of hyper-parameters.

    Returns
    -------
    SeparableSources

    Raises
    ------
    InferenceError
        If the weights did not converge.

    Notes
    -----
    The orientation law stays; depth weights and correlation give way to the weights.
    """
    problem, model, answers = posterior.problem, posterior.model, posterior.answers
    field = answers.prior.field
    theta = answers.theta(0)
    level = theta["noise_std"][problem.noise_group]
    scaled = np.asarray(field.lead_field, np.float64) / level[:, None, None]
    found = eloreta.run(scaled, posterior.lambda2, is_normalised=True)
    if not float(found.residual) < _TOLERANCE:
        raise InferenceError(Status.NOT_CONVERGED)
    prior = _WeightedPrior(field, np.asarray(found.inverse_weights, np.float64))
    # The weights come scaled to trace(G R G') = rank at these noise levels.
    theta["source_std"] = problem.moment_unit / np.sqrt(posterior.lambda2)
    is_filter, observed = answers.is_filter, answers.observed
    moments = separable.condition(
        model, problem, prior, [theta], is_filter=is_filter, observed=observed
    )
    return SeparableSources(problem, model, moments, is_filter, observed, prior=prior)
