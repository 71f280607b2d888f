"""Tetrahedra between any nested closed surfaces, by gmsh.

The surfaces are handed over as discrete surfaces and kept as they are; the mesher fills the
space between them (Delaunay, then optimisation by swaps and smoothing). gmsh comes under the
GPL and is therefore no requirement of this package: it is imported here and nowhere else.

Reference: Geuzaine, Remacle 2009, doi:10.1002/nme.2579.
"""

import numpy as np

from ..core.checks import check_positive
from .mesh import Mesh
from .surfaces import check_nested, check_surface, edge_lengths, enclosed_volume

__all__ = ["mesh_surfaces"]


def mesh_surfaces(vertices, faces, *, spacing=None):
    """Mesh the space inside nested closed surfaces, each with its own triangles.

    Parameters
    ----------
    vertices : sequence of (n_vertices, 3) arrays
        In m, in any order: the innermost surface encloses label 0, the shell around it is
        label 1, and so on.
    faces : sequence of (n_faces, 3) int arrays
        Triangles of each surface, normals outward.
    spacing : float, optional
        Longest wanted edge away from the surfaces, in m; by default the mean edge of the
        innermost surface. Near a surface its own triangles decide.

    Returns
    -------
    Mesh

    Raises
    ------
    ImportError
        If gmsh is not installed.
    ValueError
        If a surface is open, inside out or flat somewhere, surfaces cross, or the mesher fails.

    Notes
    -----
    A thin shell gets one element across where the triangles of its surfaces are longer than it
    is thick. About 18 s for 93,000 nodes from four surfaces of 10,242 vertices, with the checks.
    """
    surfaces = [
        check_surface(v, f, f"surface {i}")
        for i, (v, f) in enumerate(zip(vertices, faces, strict=True))
    ]
    surfaces.sort(key=lambda surface: enclosed_volume(*surface))
    outermost_first = surfaces[::-1]
    check_nested(outermost_first, [f"surface of size rank {i}" for i in range(len(surfaces))])
    innermost_edge = float(edge_lengths(*surfaces[0]).mean())
    spacing = innermost_edge if spacing is None else check_positive("spacing", spacing)
    try:
        import gmsh
    except ImportError:
        raise ImportError(
            "mesh_surfaces needs the mesher gmsh: pip install gmsh (GPL). Surfaces that a common "
            "centre sees need no mesher: align_surfaces and layered_mesh."
        ) from None
    nodes, elements, labels = _run(gmsh, surfaces, spacing)
    order = np.cross(
        nodes[elements[:, 1]] - nodes[elements[:, 0]], nodes[elements[:, 2]] - nodes[elements[:, 0]]
    )
    is_inverted = np.sum(order * (nodes[elements[:, 3]] - nodes[elements[:, 0]]), axis=1) < 0
    elements[is_inverted] = elements[is_inverted][:, [0, 2, 1, 3]]
    return Mesh(nodes, elements, labels)


def _run(gmsh, surfaces, spacing):
    """Fill the surfaces, innermost first; nodes, elements and labels."""
    was_running = gmsh.isInitialized()
    if not was_running:
        gmsh.initialize(readConfigFiles=False, interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.model.add("bayes_esi head")
        gmsh.option.setNumber("Mesh.MeshSizeMax", spacing)
        gmsh.option.setNumber("Mesh.Algorithm3D", 1)  # Delaunay: one thread, reproducible
        offset = 0
        for tag, (vertices, faces) in enumerate(surfaces, start=1):
            n_vertices = len(vertices)
            gmsh.model.addDiscreteEntity(2, tag)
            numbers = np.arange(offset + 1, offset + n_vertices + 1)
            gmsh.model.mesh.addNodes(2, tag, numbers, vertices.ravel())
            corners = faces.astype(np.int64).ravel() + offset + 1
            gmsh.model.mesh.addElementsByType(tag, 2, [], corners)
            offset += n_vertices
            gmsh.model.geo.addSurfaceLoop([tag], tag)
            gmsh.model.geo.addVolume([tag] if tag == 1 else [tag, tag - 1], tag)
        gmsh.model.geo.synchronize()
        try:
            gmsh.model.mesh.generate(3)
        except Exception as error:  # gmsh raises bare exceptions
            raise ValueError(
                f"surfaces could not be meshed: gmsh says {error}; smooth the surfaces, or make "
                "their triangles no longer than the shells are thick."
            ) from None
        numbers, coordinates, _ = gmsh.model.mesh.getNodes()
        elements, labels = [], []
        for tag in range(1, len(surfaces) + 1):
            _, corners = gmsh.model.mesh.getElementsByType(4, tag)
            elements.append(corners.reshape(-1, 4))
            labels.append(np.full(len(elements[-1]), tag - 1, np.int32))
        gmsh.model.remove()
    finally:
        if not was_running:
            gmsh.finalize()
    used, elements = np.unique(np.concatenate(elements), return_inverse=True)
    place = np.zeros(int(numbers.max()) + 1, np.int64)
    place[numbers.astype(np.int64)] = np.arange(len(numbers))
    nodes = coordinates.reshape(-1, 3)[place[used.astype(np.int64)]]
    return nodes, elements.reshape(-1, 4), np.concatenate(labels)
