"""Smooth priors: the Laplacian in the interior, invertible everywhere, variances exact."""

import numpy as np
import pytest
from scipy import sparse

from bayes_esi.sources.adjacency import neighbour_table, radius_adjacency
from bayes_esi.sources.laplacian import (
    SparseFactor,
    laura_operator,
    loreta_operator,
    marginal_variances,
)


def grid(n, step=0.007):
    axes = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    return step * np.stack(axes, axis=-1).reshape(-1, 3)


def cubic(pos):
    return radius_adjacency(pos, n_nearest=1)


POS = grid(6)
GRAPH = cubic(POS)
INTERIOR = np.all((POS > 0.001) & (POS < 0.034), axis=1)
RING = sparse.csr_array(
    sparse.diags_array([1.0, 1, 1, 1], offsets=[-1, 1, -19, 19], shape=(20, 20))
)
OPERATORS = {
    "loreta": lambda graph, pos, **kw: loreta_operator(graph, **kw),
    "laura": laura_operator,
}


def test_is_the_laplacian_in_the_interior():
    operator = loreta_operator(GRAPH)
    rng = np.random.default_rng(0)
    # Of a harmonic and of a quadratic function, whose second differences are exact.
    x, y, z = (POS / 0.007).T
    for values, laplacian in ((3 + x - 2 * y + x * z, 0.0), (x**2 + 2 * y**2, 6.0)):
        # -6 B / h^2 is the Laplacian at h = 1; rounding at values up to 100.
        np.testing.assert_allclose(-6 * (operator @ values)[INTERIOR], laplacian, atol=1e-12)
    constant = operator @ np.full(len(POS), rng.uniform(1, 2))
    assert np.abs(constant[INTERIOR]).max() < 1e-14
    assert constant[~INTERIOR].min() > 0.05


def test_border_correction_is_the_published_one():
    dense = GRAPH.toarray() / 6
    mean = 0.5 * (np.eye(len(POS)) + np.diag(1 / dense.sum(axis=1))) @ dense
    np.testing.assert_allclose(
        loreta_operator(GRAPH).toarray(), np.eye(len(POS)) - mean, atol=1e-15
    )
    uncorrected = loreta_operator(GRAPH, is_border_corrected=False, epsilon=1e-9)
    np.testing.assert_allclose(uncorrected @ np.ones(len(POS)), 1e-9, rtol=1e-5)


def test_laura_rows():
    rng = np.random.default_rng(1)
    pos = POS + rng.uniform(-0.001, 0.001, POS.shape)
    operator = laura_operator(GRAPH, pos, exponent=2.0, epsilon=0.1).toarray()
    i = 43
    near = np.flatnonzero(GRAPH.toarray()[i])
    weight = np.linalg.norm(pos[near] - pos[i], axis=1) ** -2.0
    np.testing.assert_allclose(
        operator[i, near], -weight / weight.sum() * near.size / 6, rtol=1e-12
    )
    assert operator[i, i] == 1.1
    # At equal distances both operators agree in the interior.
    same = laura_operator(GRAPH, POS) - loreta_operator(GRAPH)
    assert abs(same[INTERIOR]).max() < 1e-14


@pytest.mark.parametrize("kind", OPERATORS)
def test_table_and_matrix_are_one(kind):
    make = OPERATORS[kind]
    from_table = make(neighbour_table(GRAPH), POS)
    assert abs(from_table - make(GRAPH, POS)).max() == 0
    assert abs(from_table - make(GRAPH.toarray(), POS)).max() == 0


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_inverse_and_variances(kind, epsilon):
    operator = OPERATORS[kind](GRAPH, POS, epsilon=epsilon)
    inverse = np.linalg.inv(operator.toarray())
    factor = SparseFactor(operator)
    rhs = np.random.default_rng(0).standard_normal((len(POS), 3))
    # Conditions of the operators are below 1e3.
    np.testing.assert_allclose(factor.solve(rhs), inverse @ rhs, rtol=0, atol=1e-11)
    np.testing.assert_allclose(factor.solve_transposed(rhs), inverse.T @ rhs, rtol=0, atol=1e-11)
    np.testing.assert_allclose(factor.solve(rhs[:, 0]), inverse @ rhs[:, 0], rtol=0, atol=1e-11)
    # The square of the condition, at most 1e6, times rounding.
    variances = np.sum(inverse**2, axis=1)
    np.testing.assert_allclose(factor.marginal_variances(), variances, rtol=1e-9)
    if epsilon:
        assert np.abs(inverse).sum(axis=1).max() <= 1 / epsilon


def test_disconnected_pieces():
    pos = np.vstack([grid(3), grid(4) + 1.0, [[5.0, 5.0, 5.0]]])
    graph = sparse.block_diag([cubic(grid(3)), cubic(grid(4)), sparse.csr_array((1, 1))])
    operator = loreta_operator(graph, n_neighbours=6)
    variances = marginal_variances(operator)
    np.testing.assert_allclose(variances, np.sum(np.linalg.inv(operator.toarray()) ** 2, axis=1))
    assert variances[-1] == 1
    alone = marginal_variances(loreta_operator(cubic(grid(3)), n_neighbours=6))
    np.testing.assert_allclose(variances[:27], alone, rtol=1e-12)
    assert np.isfinite(laura_operator(graph, pos).data).all()


def test_a_draw_is_smooth_and_has_the_covariance():
    factor = SparseFactor(loreta_operator(GRAPH))
    draws = factor.solve(np.random.default_rng(0).standard_normal((len(POS), 4000)))
    exact = np.linalg.inv((factor.operator.T @ factor.operator).toarray())
    std = np.sqrt(exact.diagonal())
    correlation = exact / np.outer(std, std)
    sampled = np.corrcoef(draws)
    # Sampling error of a correlation is below 1 / sqrt(4000) = 0.016; six of them.
    assert np.abs(sampled - correlation).max() < 0.1
    first, second = GRAPH.nonzero()
    far = np.linalg.norm(POS[:, None] - POS, axis=2) > 0.028
    assert correlation[first, second].min() > 0.5
    assert correlation[far].mean() < correlation[first, second].mean() - 0.3


def test_epsilon_shortens_the_correlation():
    def of_neighbours(epsilon):
        operator = loreta_operator(RING, is_border_corrected=False, epsilon=epsilon)
        covariance = np.linalg.inv((operator.T @ operator).toarray())
        return covariance[0, 1] / covariance[0, 0]

    assert 0.999 > of_neighbours(0.01) > of_neighbours(0.1) > of_neighbours(1.0) > 0


def test_bad_input():
    with pytest.raises(ValueError, match="epsilon must be positive: 1 of 1"):
        loreta_operator(RING)
    with pytest.raises(ValueError, match="epsilon must be positive: 1 of 1"):
        loreta_operator(GRAPH, is_border_corrected=False)
    with pytest.raises(ValueError, match="symmetric"):
        loreta_operator(sparse.csr_array(np.triu(GRAPH.toarray())))
    with pytest.raises(ValueError, match="a source has 6 neighbours"):
        loreta_operator(GRAPH, n_neighbours=4)
    with pytest.raises(ValueError, match="names source 9"):
        loreta_operator(np.array([[1, -1], [9, 0]]))
    with pytest.raises(ValueError, match="same position"):
        laura_operator(GRAPH, np.zeros_like(POS))
    with pytest.raises(ValueError, match="must be invertible"):
        SparseFactor(sparse.csc_array(np.ones((3, 3))))
    with pytest.raises(ValueError, match="216 rows"):
        SparseFactor(loreta_operator(GRAPH)).solve(np.ones(5))


@pytest.mark.slow
def test_variances_of_a_large_volume():
    pos = grid(28)
    pos = pos[np.linalg.norm(pos - pos.mean(axis=0), axis=1) < 0.0965]
    assert len(pos) > 10_000
    operator = loreta_operator(cubic(pos))
    variances = marginal_variances(operator)
    factor = SparseFactor(operator)
    for i in (0, 5000, len(pos) - 1):
        unit = np.zeros(len(pos))
        unit[i] = 1
        # The i-th row of B^{-1}.
        np.testing.assert_allclose(
            variances[i], np.sum(factor.solve_transposed(unit) ** 2), rtol=1e-8
        )
