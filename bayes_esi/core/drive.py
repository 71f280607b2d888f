"""Long runs as compiled chunks driven from the host: progress, checkpoint, resume.

A run is a state and a function that advances it by one chunk. Randomness comes from folding
the chunk number into the run's key, so a run that was killed and resumed gives the
same bits as one that was not.
"""

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path

import jax
import numpy as np

__all__ = ["Checkpoint", "fingerprint", "progress_bar", "run_in_chunks", "write_atomically"]


class Checkpoint:
    """Saves the arrays of a run after each chunk and gives them back.

    Parameters
    ----------
    path : path-like or None
        File to write, ``.npz`` without pickle; None saves nothing.
    identity : str
        Fingerprint of everything the run depends on. A file with another is refused.

    Raises
    ------
    ValueError
        If the file exists and belongs to another run or is not a checkpoint.
    """

    def __init__(self, path, identity):
        self.path = None if path is None else Path(path)
        self.identity = identity

    def load(self, like):
        """Return (chunk number, state) with the structure of `like`, or None if there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            # NumPy would leave a file open that it fails to read.
            with open(self.path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                identity, step = str(file["identity"]), int(file["step"])
                leaves = [file[f"leaf_{i}"] for i in range(len(file.files) - 2)]
        except (EOFError, OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
            raise ValueError(
                f"checkpoint {self.path} cannot be read; delete it to start again."
            ) from None
        if identity != self.identity:
            raise ValueError(
                f"checkpoint {self.path} belongs to another run (other data, model, key or "
                "options); delete it or name another file."
            )
        return step, _unpack(like, leaves)

    def save(self, step, state):
        """Write the state after chunk number `step`; a kill leaves the old file or the new."""
        if self.path is None:
            return
        leaves = {f"leaf_{i}": leaf for i, leaf in enumerate(_pack(state))}
        with write_atomically(self.path) as name, open(name, "wb") as file:
            np.savez(file, identity=self.identity, step=step, **leaves)

    def clear(self):
        """Remove the file: the run is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def run_in_chunks(
    advance, state, n_steps, checkpoint, *, chunk, n_warmup=0, progress=lambda done: None
):
    """Advance a state to the last step, from where the checkpoint left it.

    Parameters
    ----------
    advance : callable
        ``advance(state, start, stop)`` returns the state after steps `start`, ..., `stop` - 1. It
        may write into the NumPy arrays of the state it is given.
    state : pytree
        Before the first step: chains, and room for what is kept of them.
    n_steps : int
    checkpoint : Checkpoint
        Saved after each chunk; removed at the end.
    chunk : int
        Most steps between looks at the clock and the checkpoint.
    n_warmup : int
        A chunk ends where the warm-up does, so that it is all warm-up or none of it.
    progress : callable
        Called after each chunk with the share of the steps done. An exception it raises ends the
        run, and leaves the checkpoint.

    Returns
    -------
    pytree
        The state after the last step.

    Raises
    ------
    ValueError
        If the checkpoint belongs to another run or cannot be read.
    """
    done, state = checkpoint.load(state) or (0, state)
    while done < n_steps:
        stop = min(done + chunk, n_warmup if done < n_warmup else n_steps)
        state = advance(state, done, stop)
        done = stop
        checkpoint.save(done, state)
        progress(done / n_steps)
    checkpoint.clear()
    return state


def fingerprint(*trees):
    """Hash the arrays and static parts of pytrees."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(str(jax.tree.structure(trees)).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def write_atomically(path):
    """Name a temporary file beside `path` that takes its place when the block ends well."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def progress_bar(show, description):
    """A bar over inverse temperatures 0 to 1: `update(value, **figures)`.

    It appears after two seconds, so that short runs stay silent.
    """
    from tqdm import tqdm

    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=description, disable=not show, delay=2, bar_format=layout) as bar:

        def update(value, **figures):
            bar.set_postfix(figures, refresh=False)
            bar.update(min(value, 1.0) - bar.n)

        yield update


def _is_key(leaf):
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _pack(state):
    leaves = jax.tree.leaves(state)
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]


def _unpack(like, leaves):
    kinds, structure = jax.tree.flatten(like)
    if len(kinds) != len(leaves):
        raise ValueError("checkpoint holds another number of arrays; delete it to start again.")
    restored = [
        jax.random.wrap_key_data(leaf) if _is_key(kind) else leaf
        for kind, leaf in zip(kinds, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, restored)
