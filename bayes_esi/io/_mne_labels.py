"""Sets of sources on surfaces as `mne.Label`."""

import numpy as np

__all__ = ["sources_to_labels"]


def sources_to_labels(problem, sources, values, name):
    """Write sources on surfaces as one label a hemisphere.

    Parameters
    ----------
    problem : Problem
    sources : (n,) int array
    values : (n,) array
        Of the vertices.
    name : str

    Returns
    -------
    list of mne.Label
        Left before right; none of a hemisphere without such sources.

    Raises
    ------
    ValueError
        If there are sources that are not on a surface.
    """
    import mne

    sources, values = np.asarray(sources), np.asarray(values, float)
    kinds = np.array(problem.block_kinds)[problem.source_block[sources]]
    outside = ~np.isin(kinds, ("lh", "rh"))
    if np.any(outside):
        raise ValueError(
            f"labels are of surfaces, where {outside.sum()} of {len(sources)} are not: take "
            "quantity='dipoles'."
        )
    labels = []
    for side in ("lh", "rh"):
        own = np.flatnonzero(kinds == side)
        if not own.size:
            continue
        vertices = problem.source_vertices[sources[own]]
        order = np.argsort(vertices)
        labels.append(
            mne.Label(
                vertices[order],
                pos=problem.source_pos[sources[own][order]],
                values=values[own][order],
                hemi=side,
                name=f"{name}-{side}",
                subject=problem.subject,
                verbose="ERROR",
            )
        )
    return labels
