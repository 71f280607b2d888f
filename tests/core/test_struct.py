"""Frozen dataclasses as pytrees: arrays are leaves, static fields belong to the compilation key."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.core.struct import static, struct


@struct
class Wave:
    amplitude: jax.Array
    phase: jax.Array | None
    n_harmonics: int = static(default=1)


def test_arrays_are_leaves_and_static_fields_are_not():
    wave = Wave(jnp.ones(3), jnp.zeros(2), n_harmonics=2)
    assert [leaf.shape for leaf in jax.tree.leaves(wave)] == [(3,), (2,)]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, wave)
    assert isinstance(doubled, Wave) and doubled.n_harmonics == 2
    np.testing.assert_array_equal(doubled.amplitude, [2, 2, 2])
    # None has no leaves, so an optional array needs no dummy.
    assert len(jax.tree.leaves(Wave(jnp.ones(3), None))) == 1


def test_instances_are_frozen_and_compare_by_identity():
    wave = Wave(jnp.ones(3), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        wave.amplitude = jnp.zeros(3)
    # Equality of arrays has no truth value; two instances are two objects.
    assert wave == wave and wave != Wave(wave.amplitude, None)


def test_only_static_fields_and_shapes_compile_again():
    n_traces = 0

    @jax.jit
    def total(wave):
        nonlocal n_traces
        n_traces += 1
        return wave.n_harmonics * jnp.sum(wave.amplitude)

    assert total(Wave(jnp.ones(3), None)) == 3
    assert total(Wave(2 * jnp.ones(3), None)) == 6
    assert n_traces == 1
    assert total(Wave(jnp.ones(3), None, n_harmonics=2)) == 6
    assert n_traces == 2


def test_instances_stack_under_vmap():
    waves = jax.vmap(lambda x: Wave(x, None))(jnp.arange(6.0).reshape(2, 3))
    assert waves.amplitude.shape == (2, 3)
    np.testing.assert_array_equal(jax.vmap(lambda w: w.amplitude.sum())(waves), [3, 12])
