"""Floor 2: how sources reach the sensors."""

from .bem import BEM
from .equivalent_dipoles import EquivalentDipoles, fit_equivalent_dipoles
from .fem import FEM, Transfer
from .lead_field import LeadField
from .mesh import Mesh
from .mesh_layers import align_surfaces, layered_mesh
from .mesh_surfaces import mesh_surfaces
from .mesh_voxels import hexahedra_from_volume
from .sensors import Sensors, average_reference, linked_reference
from .sphere import sphere_eeg, sphere_meg
from .sphere_model import Sphere
from .template import TemplateHead
from .unbounded import bipolar_reference, unbounded, white_matter_reference

__all__ = [
    "BEM",
    "FEM",
    "EquivalentDipoles",
    "LeadField",
    "Mesh",
    "Sensors",
    "Sphere",
    "TemplateHead",
    "Transfer",
    "align_surfaces",
    "average_reference",
    "bipolar_reference",
    "fit_equivalent_dipoles",
    "hexahedra_from_volume",
    "layered_mesh",
    "linked_reference",
    "mesh_surfaces",
    "sphere_eeg",
    "sphere_meg",
    "unbounded",
    "white_matter_reference",
]
