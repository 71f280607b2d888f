"""Floor 3: the marginal likelihoods as NumPyro distributions.

Importing this folder imports NumPyro, which `import bayes_esi` alone does not.
"""

from .dipoles import DipoleData

__all__ = ["DipoleData"]
