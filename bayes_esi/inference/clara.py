"""CLARA: LORETA repeated under a prior that contracts to where the last image was large.

    x_k = arg min |y - G x|^2 + lambda2 |B D_k^{-1} x|^2,     prior covariance D_k (B'B)^{-1} D_k
    D_1 = diag(depth),     D_{k+1} = diag(depth) diag(s_k / max s_k),     s_k = A |x_k|

with |x_k| the root of the squares of a source summed over components and samples, A the mean over
a source and its neighbours, and s_k / max s_k set to 0 below `cut`. What was removed stays removed:
the support shrinks. The prior is rescaled at each step so that trace(G D (B'B)^{-1} D G') = m, and
lambda2 = 1 / SNR^2 keeps its meaning.

The first image is LORETA's. All others are a heuristic: the same data make the prior and the
estimate, the iteration minimises nothing, and there is no posterior. Two or three steps are usual.
The published description of the (proprietary) method leaves A and the rescaling open; these
are choices made here.

Cost: per step solves with B for m d right-hand sides, and O(m^2 n d).

References: Pascual-Marqui, Michel, Lehmann 1994, doi:10.1016/0167-8760(84)90014-X (LORETA); Hoechstetter
et al. 2010, IFMBE Proc. 28:53, doi:10.1007/978-3-642-12197-5_8 (CLARA).
"""
