"""Tight frames of windowed waves: coefficients that keep energy and give signals back.

    u = x F,    x = u F',    F F' = I

for signals x of any length: windows reach beyond both ends, and each sample is divided by the
root of the energy of all windows over it. Waves are real cosines and sines of the frequencies
f / window, f = 0 ... window/2, in pairs (an atom each). Inner frequencies carry a factor sqrt(2),
because of a complex spectrum that is symmetric half is kept: so Frobenius norms are those of the
whole spectrum, and sums of magnitudes are too once an atom is counted sqrt(2) times (`count`).

F is kept as a matrix, O(n_times n_atoms) memory and work for each signal.

Reference: Gramfort et al. 2013, doi:10.1016/j.neuroimage.2012.12.051 (the frame).
"""

from typing import NamedTuple

import numpy as np

from ..core.checks import check_count

__all__ = ["Frame", "join", "samples", "waves"]


class Frame(NamedTuple):
    """A dictionary of atoms in time."""

    atoms: np.ndarray  # (n_times, n_atoms, c): F, each atom with c real parts that turn together
    count: np.ndarray  # (n_atoms,) how often the magnitude of a coefficient counts in a sum


def waves(n_times, window=64, step=4):
    """Frame of sine windows of a given length, moved by a given step.

    Parameters
    ----------
    n_times : int
        Samples of the signals.
    window : int
        Samples, a multiple of 4.
    step : int
        Samples, even, dividing the window, at most half of it.

    Returns
    -------
    Frame
        Atoms of all frequencies of the first window, then of the second, ...

    Raises
    ------
    ValueError
        On numbers that do not fit.
    """
    n_times = check_count("n_times", n_times)
    window, step = check_count("window", window), check_count("step", step)
    if window % 4:
        raise ValueError(f"window must be a multiple of 4 samples, got {window}.")
    if window % step or step % 2 or step > window // 2:
        raise ValueError(
            f"step must be even, divide window = {window} and be at most half of it, got {step}."
        )
    n_steps = -(-n_times // step)
    start = (window - step) // 2
    shape = np.sin(np.pi * (np.arange(window) + 0.5) / window)
    energy = np.zeros(window + (n_steps - 1) * step)
    for i in range(n_steps):
        energy[i * step : i * step + window] += shape**2
    phase = 2 * np.pi / window * np.outer(np.arange(window), np.arange(window // 2 + 1))
    count = np.full(window // 2 + 1, np.sqrt(2.0))
    count[[0, -1]] = 1
    wave = count[:, None] * np.stack([np.cos(phase), -np.sin(phase)], axis=-1)
    wave[:, [0, -1], 1] = 0  # the sine of a multiple of pi
    atoms = np.zeros((energy.size, n_steps, window // 2 + 1, 2))
    for i in range(n_steps):
        here = slice(i * step, i * step + window)
        atoms[here, i] = (shape / np.sqrt(window * energy[here]))[:, None, None] * wave
    atoms = atoms[start : start + n_times].reshape(n_times, -1, 2)
    return Frame(atoms, np.tile(count, n_steps))


def samples(n_times):
    """Frame of single samples: coefficients are the signal itself."""
    return Frame(np.eye(check_count("n_times", n_times))[:, :, None], np.ones(n_times))


def join(*frames):
    """One frame out of several: short windows for what is brief, long ones for what lasts."""
    width = max(frame.atoms.shape[2] for frame in frames)
    share = 1 / np.sqrt(len(frames))
    atoms = [
        share * np.pad(f.atoms, ((0, 0), (0, 0), (0, width - f.atoms.shape[2]))) for f in frames
    ]
    return Frame(np.concatenate(atoms, axis=1), np.concatenate([f.count for f in frames]))
