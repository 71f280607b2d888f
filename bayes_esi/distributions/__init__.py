"""Floor 3: the marginal likelihoods as NumPyro distributions.

Importing this folder imports NumPyro; `import bayes_esi` does neither.
"""

from .dipoles import DipoleData

__all__ = ["DipoleData"]
