"""Conductivity tensors of elements, stiffness matrix, and the field of volume currents.

The potential u of a current source density s solves -div(sigma grad u) = s with no current
through the skin. In linear shape functions phi_i that is K u = b with

    K_ij = int grad phi_i . sigma grad phi_j,       b_i = int phi_i s.

With the affine map of an element (see `mesh`), gradients are J^-T times those of the reference
element, so that both kinds of element share one formula:

    K_ij = |det J| sum_ab (J^-1 sigma J^-T)_ab A_abij,   A_abij = int d_a phi_i d_b phi_j d xi.

K is symmetric, positive semidefinite, and only constants are in its null space: its rows sum to
zero because shape functions sum to one. Here the diagonal is *defined* as minus the sum of the
rest of its row, which makes that exact.

The magnetic field of the volume currents -sigma grad u along a coil's normal n is linear in u
as well, so one more right-hand side per coil gives the field of every source:

    B . n = sum_i g_i u_i,   g_i = -mu0/4pi int (sigma grad phi_i) . (R x n / |R|^3)

with R from the point of integration to the coil.

Cost O(n_elements) with 6 pairs of corners for a tetrahedron and 28 for a voxel;
O(n_elements n_coils) for the coils.

References: Wolters, Grasedyck, Hackbusch 2004, doi:10.1088/0266-5611/20/4/007 (transfer
matrices for EEG and MEG); Gençer, Acar 2004, doi:10.1088/0031-9155/49/5/004 (sensitivity of
both to conductivity).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array

from ..core.checks import check_array

__all__ = ["conductivity_tensors", "reference_gradients", "stiffness_matrix", "volume_current_rows"]

# Gauss points of the voxel; four points of a tetrahedron integrate quadratics exactly.
_GAUSS = 0.5 + np.array([-1.0, 1.0]) / np.sqrt(12)
_POINTS = {
    4: np.full((4, 3), (5 - 5**0.5) / 20) + np.eye(4)[:, 1:] * (5**0.5 / 5),
    8: np.array(list(itertools.product(_GAUSS, repeat=3))),
}
_VOLUME = {4: 1 / 6, 8: 1.0}
_BITS = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])

# Relative asymmetry of a tensor that is rounding and not a mistake.
_SYMMETRY_TOL = 1e-8
# Elements whose coil integrals are formed at once: 10 MB of positions for 100 coils.
_CHUNK = 4096


def reference_gradients(xi, n_corners, xp=np):
    """Gradients of the shape functions at reference coordinates `xi` (..., 3).

    Returns
    -------
    (..., n_corners, 3) array
        d phi_i / d xi_a; constant for tetrahedra (4 corners).
    """
    if n_corners == 4:
        constant = np.concatenate([-np.ones((1, 3)), np.eye(3)])
        return xp.broadcast_to(xp.asarray(constant, xi.dtype), (*xi.shape[:-1], 4, 3))
    bits = xp.asarray(_BITS, xi.dtype)
    factor = bits * xi[..., None, :] + (1 - bits) * (1 - xi[..., None, :])
    slope = 2 * bits - 1
    return xp.stack(
        [slope[:, a] * factor[..., (a + 1) % 3] * factor[..., (a + 2) % 3] for a in range(3)],
        axis=-1,
    )


def conductivity_tensors(mesh, conductivity, *, centre=None, normals=None):
    """Give every element its conductivity tensor.

    Parameters
    ----------
    mesh : Mesh
    conductivity : sequence, one entry per label; or (n_elements, 3, 3) array
        In S/m. An entry is a number, a pair (radial, tangential), or a (3, 3) tensor.
    centre : (3,) array, optional
        The radial direction of pairs points away from here, in m.
    normals : (n_elements, 3) array, optional
        The radial direction of pairs by element, instead of `centre`; any length but zero.

    Returns
    -------
    (n_elements, 3, 3) array
        Symmetric positive definite.

    Raises
    ------
    ValueError
        If a label has no conductivity, a pair no direction, or a tensor is not symmetric
        positive definite.
    """
    try:
        is_field = np.shape(conductivity) == (mesh.n_elements, 3, 3)
    except ValueError:  # numbers beside pairs
        is_field = False
    if is_field:
        return _check_tensors("conductivity", check_array("conductivity", conductivity, ndim=3))
    if not np.iterable(conductivity) or len(conductivity) != mesh.n_labels:
        came = len(conductivity) if np.iterable(conductivity) else repr(conductivity)
        raise ValueError(
            f"conductivity must have one entry for each of the {mesh.n_labels} labels of the "
            f"mesh, or shape ({mesh.n_elements}, 3, 3); got {came}."
        )
    tensors = np.empty((mesh.n_elements, 3, 3))
    for label, entry in enumerate(conductivity):
        name = f"conductivity[{label}]"
        value = check_array(name, entry, ndim=np.ndim(entry))
        where = mesh.labels == label
        if value.shape == ():
            tensors[where] = _check_tensors(name, value * np.eye(3))
        elif value.shape == (3, 3):
            tensors[where] = _check_tensors(name, value)
        elif value.shape == (2,):
            _check_tensors(name, np.diag([*value, value[1]]))
            along = _directions(mesh, where, centre, normals)
            outer = along[:, :, None] * along[:, None, :]
            tensors[where] = value[1] * np.eye(3) + (value[0] - value[1]) * outer
        else:
            raise ValueError(
                f"{name} must be a number, a pair (radial, tangential) or a (3, 3) tensor, got "
                f"shape {value.shape}."
            )
    return tensors


def _directions(mesh, where, centre, normals):
    if (centre is None) == (normals is None):
        raise ValueError(
            "a (radial, tangential) conductivity needs its radial direction: give either centre "
            "(3,) or normals (n_elements, 3)."
        )
    if normals is None:
        centre = check_array("centre", centre, shape=(3,))
        along = mesh.centroids()[where] - centre
    else:
        along = check_array("normals", normals, shape=(mesh.n_elements, 3))[where]
    length = np.linalg.norm(along, axis=1, keepdims=True)
    if not length.all():
        raise ValueError(f"normals has {np.count_nonzero(length == 0)} zero vectors; give all.")
    return along / length


def _check_tensors(name, tensors):
    size = np.abs(tensors).max(axis=(-2, -1))
    skew = np.abs(tensors - np.swapaxes(tensors, -2, -1)).max(axis=(-2, -1))
    n_skew = int(np.count_nonzero(skew > _SYMMETRY_TOL * size))
    if n_skew:
        raise ValueError(
            f"{name} must be symmetric; {n_skew} of {size.size} tensors are not: conductivity "
            "is symmetric in tissue, so check the order of the components."
        )
    n_bad = int(np.count_nonzero(np.linalg.eigvalsh(tensors)[..., 0] <= 0))
    if n_bad:
        raise ValueError(
            f"{name} must be positive (definite); {n_bad} of {size.size} are not. Give S/m; air "
            "is no element of the mesh."
        )
    return tensors


def stiffness_matrix(mesh, tensors):
    """Assemble K (n_nodes, n_nodes), symmetric CSR in S, with row sums exactly zero.

    Parameters
    ----------
    mesh : Mesh
    tensors : (n_elements, 3, 3) array
        In S/m.
    """
    n_corners = mesh.elements.shape[1]
    jacobian = mesh.jacobian()
    inverse = np.linalg.inv(jacobian)
    weight = np.abs(np.linalg.det(jacobian)) * _VOLUME[n_corners]
    metric = np.einsum("nax,nxy,nby->nab", inverse, tensors, inverse, optimize=True)
    metric *= weight[:, None, None]
    slopes = reference_gradients(_POINTS[n_corners], n_corners)
    integral = np.einsum("gia,gjb->ijab", slopes, slopes) / len(slopes)
    i, j = np.triu_indices(n_corners, 1)
    values = metric.reshape(-1, 9) @ integral[i, j].reshape(-1, 9).T
    rows, columns = mesh.elements[:, i].ravel(), mesh.elements[:, j].ravel()
    half = coo_array((values.ravel(), (rows, columns)), shape=(mesh.n_nodes,) * 2).tocsr()
    off_diagonal = (half + half.T).tocoo()
    diagonal = -np.asarray(off_diagonal.sum(axis=1)).ravel()
    nodes = np.arange(mesh.n_nodes, dtype=off_diagonal.row.dtype)
    return coo_array(
        (
            np.concatenate([off_diagonal.data, diagonal]),
            (
                np.concatenate([off_diagonal.row, nodes]),
                np.concatenate([off_diagonal.col, nodes]),
            ),
        ),
        shape=half.shape,
    ).tocsr()


def volume_current_rows(mesh, tensors, coil_pos, coil_normal):
    """Field of the volume currents as a linear function of the potential.

    Parameters
    ----------
    mesh : Mesh
    tensors : (n_elements, 3, 3) array
        In S/m.
    coil_pos, coil_normal : (n_coils, 3) arrays
        In m, and unit vectors.

    Returns
    -------
    (n_nodes, n_coils) array
        g in T/V: B . n = g' u. Columns sum to zero.
    """
    n_corners = mesh.elements.shape[1]
    points, slopes = _POINTS[n_corners], reference_gradients(_POINTS[n_corners], n_corners)
    jacobian = mesh.jacobian()
    weight = np.abs(np.linalg.det(jacobian)) * _VOLUME[n_corners] / len(points)
    # |det J| J^-1 sigma / n_points, applied to the lead vector of a coil.
    flux = np.einsum("n,nax,nxy->nay", weight, np.linalg.inv(jacobian), tensors, optimize=True)
    origin = mesh.nodes[mesh.elements[:, 0]]
    rows = np.zeros((mesh.n_nodes, len(coil_pos)))
    coils = [jnp.asarray(x.T) for x in (coil_pos, coil_normal)]
    reference = [jnp.asarray(x) for x in (points, slopes)]
    for start in range(0, mesh.n_elements, _CHUNK):
        part = slice(start, start + _CHUNK)
        local = [_pad(x[part], _CHUNK) for x in (origin, jacobian, flux)]
        values = np.asarray(_coil_integrals(*local, *reference, *coils))[: len(origin[part])]
        corners = mesh.elements[part]
        scatter = coo_array(
            (np.ones(corners.size), (corners.ravel(), np.arange(corners.size))),
            shape=(mesh.n_nodes, corners.size),
        ).tocsr()
        used = np.unique(corners)
        rows[used] += scatter[used] @ values.reshape(corners.size, -1)
    # Zero but for rounding, which in single precision no potential could answer for.
    return rows - rows.mean(axis=0)


def _pad(x, n):
    """Repeat the last rows up to `n`, so that every chunk has one shape and compiles once."""
    return jnp.asarray(np.concatenate([x, np.repeat(x[-1:], n - len(x), axis=0)]))


@jax.jit
def _coil_integrals(origin, jacobian, flux, points, slopes, coil_pos, coil_normal):
    """Integrals (n_elements, n_corners, n_coils) of the equation above over single elements."""
    nx, ny, nz = coil_normal
    total = 0.0
    for point, slope in zip(points, slopes, strict=True):
        place = origin + jacobian @ point
        x, y, z = (coil_pos[i] - place[:, i, None] for i in range(3))
        inverse = 1 / jnp.sqrt(x**2 + y**2 + z**2)
        cube = inverse**3
        lead = [(y * nz - z * ny) * cube, (z * nx - x * nz) * cube, (x * ny - y * nx) * cube]
        current = [sum(flux[:, a, i, None] * lead[i] for i in range(3)) for a in range(3)]
        total = total + jnp.stack(
            [sum(row[a] * current[a] for a in range(3)) for row in slope], axis=1
        )
    return -1e-7 * total
