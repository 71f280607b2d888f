"""Checkpoints: whole or not at all, for one run only, and a resumed run gives the same bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.core import drive
from bayes_esi.core.drive import (
    Checkpoint,
    fingerprint,
    progress_bar,
    run_in_chunks,
    write_atomically,
)


class State(NamedTuple):
    key: jax.Array
    total: jax.Array
    flags: tuple


def first_state():
    return State(jax.random.key(3), jnp.zeros((2, 3)), (jnp.arange(4), np.array([True, False])))


def advance(state, step):
    noise = jax.random.normal(jax.random.fold_in(state.key, step), state.total.shape)
    return state._replace(total=state.total + noise)


def raw(state):
    return [np.asarray(jax.random.key_data(state.key)), state.total, *state.flags]


def test_a_state_comes_back_bit_by_bit(tmp_path):
    file = Checkpoint(tmp_path / "run.npz", "me")
    assert file.load(first_state()) is None
    state = advance(first_state(), 0)
    file.save(7, state)
    step, again = file.load(first_state())
    assert step == 7 and type(again) is State
    assert again.key.dtype == state.key.dtype
    for one, other in zip(raw(state), raw(again), strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
    file.clear()
    file.clear()  # nothing left to remove is no error
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    def run(file, n_steps):
        step, state = file.load(first_state()) or (0, first_state())
        for i in range(step, n_steps):
            state = advance(state, i)
            file.save(i + 1, state)
        return state

    whole = run(Checkpoint(None, ""), 6)
    path = tmp_path / "run.npz"
    run(Checkpoint(path, "me"), 4)
    np.testing.assert_array_equal(run(Checkpoint(path, "me"), 6).total, whole.total)


@pytest.mark.parametrize("n_warmup, stops", [(0, [4, 8, 9]), (3, [3, 7, 9]), (8, [4, 8, 9])])
def test_a_chunk_ends_where_the_warm_up_does(tmp_path, n_warmup, stops):
    path, told = tmp_path / "run.npz", []

    def keep(state, start, stop):
        total, kept = state
        kept[start:stop] += total + np.arange(start, stop)
        return total + stop - start, kept

    def stop_at(done):
        told.append(round(9 * done))
        if told == stops[:2]:
            raise KeyboardInterrupt

    def run(path, progress):
        start, file = (np.zeros(()), np.zeros(9)), Checkpoint(path, "me")
        return run_in_chunks(keep, start, 9, file, chunk=4, n_warmup=n_warmup, progress=progress)

    whole = run(None, lambda done: None)
    with pytest.raises(KeyboardInterrupt):
        run(path, stop_at)
    # It goes on after the second chunk, and writes into the arrays of the file.
    total, kept = run(path, stop_at)
    assert told == stops and total == whole[0] == 9 and not path.exists()
    np.testing.assert_array_equal(kept, whole[1])


def test_nothing_is_saved_without_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Checkpoint(None, "me")
    file.save(1, first_state())
    file.clear()
    assert file.load(first_state()) is None and list(tmp_path.iterdir()) == []


def test_the_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    Checkpoint(path, "me").save(1, first_state())
    with pytest.raises(ValueError, match=r"run.npz belongs to another run .*delete it"):
        Checkpoint(path, "you").load(first_state())
    with pytest.raises(ValueError, match="another number of arrays"):
        Checkpoint(path, "me").load((first_state(), 0))


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "bare array", "one array", "pickle"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "run.npz"
    file = Checkpoint(path, "me")
    file.save(1, first_state())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "foreign":
        path.write_bytes(b"a letter to the editor")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "bare array":
        with path.open("wb") as stream:
            np.savez(stream, x=np.ones(3))
    elif damage == "one array":
        with path.open("wb") as stream:
            np.save(stream, np.ones(3))
    else:
        with path.open("wb") as stream:
            np.savez(stream, identity="me", step=1, leaf_0=np.array([{}], object))
    with pytest.raises(ValueError, match=r"run.npz cannot be read; delete it"):
        file.load((0,))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    file = Checkpoint(path, "me")
    file.save(1, first_state())

    def savez_and_die(stream, **leaves):
        stream.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(drive.np, "savez", savez_and_die)
    with pytest.raises(KeyboardInterrupt):
        file.save(2, advance(first_state(), 0))
    assert [found.name for found in tmp_path.iterdir()] == ["run.npz"]
    assert file.load(first_state())[0] == 1


def test_a_block_that_fails_writes_nothing(tmp_path):
    path = tmp_path / "note.txt"
    with pytest.raises(RuntimeError), write_atomically(path) as name:
        name.write_text("half of")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with write_atomically(path) as name:
        name.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"


def test_fingerprints_tell_values_types_and_structures_apart():
    trees = [
        np.zeros(3),
        np.zeros(4),
        np.zeros((3, 1)),
        np.zeros(3, np.float32),
        np.array([0.0, 0.0, 1e-300]),
        [np.zeros(3)],
        {"a": np.zeros(3)},
        {"b": np.zeros(3)},
        jax.random.key(0),
        jax.random.key(1),
    ]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)
    assert fingerprint(jnp.zeros(3)) == fingerprint(np.zeros(3))


def test_a_progress_bar_that_is_off_is_silent(capsys):
    with progress_bar(False, "run") as update:
        update(0.5, ESS="3")
        update(2.0)
    assert capsys.readouterr() == ("", "")
