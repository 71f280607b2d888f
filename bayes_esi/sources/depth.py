"""Depth weights: prior variances that make up for the weak fields of deep sources.

    d_j = ||G_j' G_j||_2 (largest eigenvalue),     w_j = 1 / d_j,
    variance_j = min(w_j / cap, 1)^exponent

With exponent 0 all sources are alike, with 1 and no cap all have fields of equal power. The cap
is the smallest w_j above limit^2 min(w), or max(w) where none is: no source is raised more than
(about) limit-fold in amplitude above the shallowest one. The scale of the variances is
arbitrary: min(variance) = max(variance) / limit^(2 exponent) or more, and max(variance) = 1.

MNE applies this rule (`mne.forward.compute_depth_prior`) to

- the *raw* lead field, not the whitened one, with its three orientations also where the inverse
  has one (the free field decides, the normal is taken afterwards);
- its gradiometers alone; magnetometers where there are none; EEG only where there is no MEG
  (`limit_depth_chs=True`); bad channels left out, projectors not applied;
- with the spectral norm (`combine_xyz="spectral"`), exponent 0.8 and limit 10.

On the whitened lead field, which these functions usually get, all sensors count by their
signal-to-noise ratio (MNE's `limit_depth_chs="whiten"`).

Cost O(m n_sources d^2).

References: Lin et al. 2006, doi:10.1016/j.neuroimage.2005.11.054.
"""

import numpy as np

from ..core.checks import check_array, check_positive

__all__ = ["depth_weights", "field_power"]


def depth_weights(lead_field, exponent=0.8, limit=10.0):
    """Prior variances that grow with depth.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
        Whitened or raw, d from 1 to 3.
    exponent : float
        0 to 1: share of the loss of power that is made up for.
    limit : float or None
        Largest ratio of amplitudes that is made up for; at least 1. None: no limit.

    Returns
    -------
    (n_sources,) array
        Variances relative to the largest, which is 1.

    Raises
    ------
    ValueError
        On a lead field that is zero, an exponent outside [0, 1] or a limit below 1.
    """
    exponent = float(exponent)
    if not 0 <= exponent <= 1:
        raise ValueError(
            f"exponent must lie between 0 (no depth weighting) and 1 (full), got {exponent!r}."
        )
    if limit is not None and check_positive("limit", limit) < 1:
        raise ValueError(f"limit is a ratio of amplitudes of at least 1, got {limit!r}.")
    power = field_power(lead_field)
    if not power.max() > 0:
        raise ValueError("lead_field is zero: no source can be seen.")
    # The centre of a sphere is silent: it is taken for the weakest source that is not.
    inverse = 1 / np.where(power > 0, power, power[power > 0].min())
    cap = inverse.max()
    if limit is not None:
        above = inverse[inverse > limit**2 * inverse.min()]
        cap = above.min() if above.size else cap
    return np.minimum(inverse / cap, 1.0) ** exponent


def field_power(lead_field):
    """Largest power of the field of a unit dipole over its directions, ||G_j' G_j||_2.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array

    Returns
    -------
    (n_sources,) array
        In squared units of the lead field.
    """
    lead_field = check_array("lead_field", lead_field, ndim=3)
    by_source = lead_field.transpose(1, 2, 0)
    gram = by_source @ by_source.swapaxes(1, 2)
    return np.linalg.eigvalsh(gram)[:, -1].clip(0)
