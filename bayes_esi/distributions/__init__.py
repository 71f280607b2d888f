"""Floor 3: the marginal likelihoods as NumPyro distributions.

Importing this folder imports NumPyro, which `import bayes_esi` alone does not.
"""

from .dipoles import DipoleData
from .programs import source_program
from .sources import SourceData, SourceLaw, source_law

__all__ = ["DipoleData", "SourceData", "SourceLaw", "source_law", "source_program"]
