"""Smooth priors on a graph of sources: sparse B with x = B^{-1} xi for white xi of unit variance.

Penalty ||B x||^2, prior covariance (B'B)^{-1}; n x n, the same for each moment component. All
operators compare a source with a mean over its neighbours, in units where a lone source has B = 1:

    B = (1 + epsilon) I - A1

*LORETA.* With A0_ij = 1 / k for neighbours, N_i neighbours at source i, k the largest number,

    A1 = 1/2 (I + D^{-1}) A0,     D = diag(A0 1) = diag(N_i / k)

k = 6 on a cubic grid of step h. In the interior D = 1, B 1 = epsilon, and -k B / h^2 at
epsilon = 0 is the discrete Laplacian. At the border rows of A1 sum to (1 + N_i / k) / 2 < 1, as if
half of the missing neighbours were silent: B 1 > epsilon (border correction). On meshes, where
numbers of neighbours vary without a border, the mean over the neighbours there are,
A1 = D^{-1} A0 (graph Laplacian).

*LAURA.* Local autoregression by an inverse power e of the distance, 3 for currents:

    A1_ij = (N_i / k) d_ij^{-e} / sum_l d_il^{-e}

This is the published operator with each row divided by its diagonal, so that sources count alike
where their spacing varies.

*Invertible.* Rows of |A1| sum to at most 1: for epsilon > 0 B is strictly diagonally dominant with
||B^{-1}||_inf <= 1 / epsilon, whatever the pieces of the graph. At epsilon = 0 it is invertible if
each connected piece has a row whose sum is below 1, which is a border; otherwise an error says so.
In the interior epsilon limits the correlation to about (k epsilon)^{-1/2} steps.

*Marginal variances.* P = B'B is block tridiagonal over the distances from one source: blocks
S_1 = P_11, S_i = P_ii - P_{i,i-1} S_{i-1}^{-1} P_{i-1,i}, and backwards for Q = P^{-1},

    Q_ii = S_i^{-1} + S_i^{-1} P_{i,i+1} Q_{i+1,i+1} P_{i+1,i} S_i^{-1}.

Exact, O(n s^2) time and O(n s) memory for blocks of size s (about n^{2/3} in a volume, n^{1/2} on a
surface), where solving for n unit vectors takes a hundred times as long in a volume.

References: Pascual-Marqui, Michel, Lehmann 1994, doi:10.1016/0167-8760(84)90014-X (LORETA); Grave
de Peralta Menendez et al. 2001, doi:10.1023/A:1012944913650 (LAURA); Takahashi, Fagan, Chen 1973
(entries of an inverse from a factor, Proc. 8th PICA Conf.).
"""

import numpy as np
from scipy import sparse
from scipy.linalg import cho_solve, cholesky
from scipy.sparse import csgraph
from scipy.sparse.linalg import splu

from ..core.checks import check_array, check_count, check_positive

__all__ = ["SparseFactor", "laura_operator", "loreta_operator", "marginal_variances"]


def loreta_operator(neighbours, *, epsilon=0.0, is_border_corrected=True, n_neighbours=None):
    """Discrete Laplacian of LORETA on a grid or a mesh.

    Parameters
    ----------
    neighbours : sparse or dense (n_sources, n_sources), or (n_sources, max_degree) int table
        Symmetric adjacency, or neighbours of each source padded with -1.
    epsilon : float
        Added to the diagonal; must be above 0 where a piece of the graph has no border.
    is_border_corrected : bool
        For volume grids. False: the graph Laplacian, for meshes; needs epsilon above 0.
    n_neighbours : int, optional
        k, neighbours of a source in the interior: 6 on a cubic grid. By default the largest
        number that occurs.

    Returns
    -------
    scipy.sparse.csc_array, (n_sources, n_sources)
        B, unitless.

    Raises
    ------
    ValueError
        If the graph is not symmetric, has more than `n_neighbours` neighbours somewhere, or B
        would be singular.
    """
    graph = _graph(neighbours).astype(float)
    degree, largest = _degrees(graph, n_neighbours)
    mean = _row_scaled(1 / np.maximum(degree, 1), graph)
    share = (1 + degree / largest) / 2 if is_border_corrected else np.ones_like(degree)
    return _operator(_row_scaled(share, mean), epsilon, graph)


def laura_operator(
    neighbours,
    source_pos,
    exponent=3.0,
    *,
    epsilon=0.0,
    is_border_corrected=True,
    n_neighbours=None,
):
    """Local autoregressive average of LAURA.

    Parameters
    ----------
    neighbours, epsilon, n_neighbours
        As in `loreta_operator`.
    source_pos : (n_sources, 3) array
        In m.
    exponent : float
        Neighbours count by their distance to the power of minus this.
    is_border_corrected : bool
        Count missing neighbours as silent. False for meshes.

    Returns
    -------
    scipy.sparse.csc_array, (n_sources, n_sources)
        B, unitless.
    """
    graph = _graph(neighbours).tocoo()
    source_pos = check_array("source_pos", source_pos, shape=(graph.shape[0], 3))
    exponent = check_positive("exponent", exponent)
    distance = np.linalg.norm(source_pos[graph.row] - source_pos[graph.col], axis=1)
    if np.any(distance == 0):
        raise ValueError("source_pos holds neighbours at the same position; remove the duplicates.")
    # In units of the closest pair: no power overflows.
    weight = (distance / distance.min(initial=np.inf)) ** -exponent
    weights = sparse.csr_array((weight, (graph.row, graph.col)), graph.shape)
    degree, largest = _degrees(graph.tocsr(), n_neighbours)
    total = weights.sum(axis=1)
    mean = _row_scaled(1 / np.where(total > 0, total, 1), weights)
    share = degree / largest if is_border_corrected else np.ones_like(degree)
    return _operator(_row_scaled(share, mean), epsilon, graph)


class SparseFactor:
    """A sparse factor B of a prior, factorised once.

    Parameters
    ----------
    operator : sparse (n, n)
        B of x = B^{-1} xi; invertible.

    Raises
    ------
    ValueError
        If the operator is not square, not finite, or singular.
    """

    def __init__(self, operator):
        operator = sparse.csc_array(operator, dtype=float)
        if operator.shape[0] != operator.shape[1]:
            raise ValueError(f"operator must be square, got shape {operator.shape}.")
        check_array("operator", operator.data)
        self.operator = operator
        try:
            self._lu = splu(operator)
        except RuntimeError as error:
            raise ValueError(f"operator must be invertible: {error}; raise its epsilon.") from error

    def solve(self, rhs):
        """B^{-1} rhs for (n,) or (n, k): a draw of the prior from white noise."""
        return self._lu.solve(self._checked(rhs))

    def solve_transposed(self, rhs):
        """B'^{-1} rhs for (n,) or (n, k); with rhs = G' it whitens a lead field."""
        return self._lu.solve(self._checked(rhs), trans="T")

    def marginal_variances(self):
        """Prior variances diag((B'B)^{-1}), (n,)."""
        return marginal_variances(self.operator)

    def _checked(self, rhs):
        rhs = check_array("rhs", rhs).astype(float)
        if rhs.ndim not in (1, 2) or rhs.shape[0] != self.operator.shape[0]:
            raise ValueError(
                f"rhs must have {self.operator.shape[0]} rows, one for each source; got shape "
                f"{rhs.shape}."
            )
        return rhs


def marginal_variances(operator):
    """Prior variances of x = B^{-1} xi, exactly.

    Parameters
    ----------
    operator : sparse (n, n)
        B, invertible.

    Returns
    -------
    (n,) array
        diag((B'B)^{-1}).

    Notes
    -----
    Rounding errors grow with the square of the condition of B. See the module for the method.
    """
    operator = sparse.csc_array(operator, dtype=float)
    precision = (operator.T @ operator).tocsr()
    variances = np.empty(operator.shape[0])
    _, piece = csgraph.connected_components(precision, directed=False)
    order = np.argsort(piece, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(piece))[:-1]):
        variances[members] = _diagonal_of_inverse(precision[members][:, members])
    return variances


def _diagonal_of_inverse(matrix):
    """Diagonal of the inverse of a connected, sparse, positive definite matrix."""
    blocks = _levels(matrix)
    below, factors = [], []
    for i, block in enumerate(blocks):
        own = matrix[block][:, block].toarray()
        if i:
            link = matrix[block][:, blocks[i - 1]].toarray()
            own -= link @ cho_solve((factors[-1], True), link.T, check_finite=False)
            below.append(link)
        factors.append(_cholesky(own))
    diagonal = np.empty(matrix.shape[0])
    inverse = None
    for i in reversed(range(len(blocks))):
        factor = (factors.pop(), True)
        own = cho_solve(factor, np.eye(blocks[i].size), check_finite=False)
        if inverse is not None:
            reach = own @ below[i].T
            own += reach @ inverse @ reach.T
        inverse = own
        diagonal[blocks[i]] = own.diagonal()
    return diagonal


def _cholesky(matrix):
    try:
        return cholesky(matrix, lower=True, check_finite=False, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"operator must be invertible: {error}; raise its epsilon.") from error


def _levels(matrix):
    """Members at each distance from a source at the rim: neighbours are at most one level apart."""
    start = 0
    for _ in range(2):  # the farthest from anywhere is at the rim
        distance = csgraph.shortest_path(
            matrix != 0, directed=False, unweighted=True, indices=start
        )
        start = int(np.argmax(distance))
    distance = distance.astype(int)
    order = np.argsort(distance, kind="stable")
    return np.split(order, np.cumsum(np.bincount(distance))[:-1])


def _graph(neighbours):
    """Symmetric boolean adjacency without diagonal, from a matrix or a table."""
    is_table = (
        isinstance(neighbours, np.ndarray)
        and neighbours.ndim == 2
        and neighbours.dtype.kind == "i"
        and (neighbours.shape[0] != neighbours.shape[1] or neighbours.min(initial=0) < 0)
    )
    if is_table:
        n = neighbours.shape[0]
        if neighbours.size and neighbours.max() >= n:
            raise ValueError(
                f"neighbours names source {neighbours.max()}, but its table has {n} rows."
            )
        row, column = np.nonzero(neighbours >= 0)
        pairs = (row, neighbours[row, column])
        graph = sparse.csr_array((np.ones(row.size, bool), pairs), (n, n))
    else:
        graph = sparse.csr_array(neighbours)
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
            raise ValueError(
                "neighbours must be a square adjacency matrix or an integer table padded with -1; "
                f"got shape {graph.shape}."
            )
        graph = graph != 0
    graph = (graph - sparse.diags_array(graph.diagonal(), dtype=bool, format="csr")) != 0
    if (graph != graph.T).nnz:
        raise ValueError("neighbours must be symmetric: if j is a neighbour of i, so is i of j.")
    graph.eliminate_zeros()
    return sparse.csr_array(graph)


def _degrees(graph, n_neighbours):
    degree = np.diff(graph.indptr).astype(float)
    largest = max(degree.max(initial=0), 1)
    if n_neighbours is not None:
        if largest > check_count("n_neighbours", n_neighbours):
            raise ValueError(
                f"n_neighbours is {n_neighbours}, but a source has {int(largest)} neighbours; "
                "give a graph with fewer or leave n_neighbours out."
            )
        largest = float(n_neighbours)
    return degree, largest


def _row_scaled(scale, matrix):
    return sparse.diags_array(scale) @ matrix


def _operator(mean, epsilon, graph):
    if epsilon:
        epsilon = check_positive("epsilon", epsilon)
    else:
        _, piece = csgraph.connected_components(graph, directed=False)
        slack = np.zeros(piece.max(initial=-1) + 1)
        np.maximum.at(slack, piece, 1 - mean.sum(axis=1))
        n_closed = int(np.count_nonzero(slack < 1e-12))
        if n_closed:
            raise ValueError(
                f"epsilon must be positive: {n_closed} of {slack.size} connected pieces have no "
                "border, and constant sources there would cost nothing."
            )
    identity = sparse.eye_array(mean.shape[0])
    return ((1 + epsilon) * identity - mean).tocsc()
