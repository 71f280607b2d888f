"""The boundary element head beside those of MNE-Python (linear collocation) and OpenMEEG."""

import numpy as np
import pytest

from bayes_esi.forward.bem import BEM
from bayes_esi.forward.sphere import sphere_eeg, sphere_meg
from bayes_esi.forward.surfaces import icosphere

RADII, SIGMA = (0.092, 0.086, 0.08), (0.33, 0.33 / 80, 0.33)


def unit(n, seed):
    x = np.random.default_rng(seed).standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def recording():
    """32 electrodes on the upper head and 24 point magnetometers around, as `mne.Info`."""
    import mne
    from mne.io.constants import FIFF

    upper = unit(60, 0)
    upper = 0.092 * upper[upper[:, 2] > -0.02][:26]
    names = [f"EEG{i + 1:03d}" for i in range(len(upper))]
    info = mne.create_info(names, 100.0, "eeg", verbose="ERROR")
    montage = mne.channels.make_dig_montage(
        dict(zip(names, upper, strict=True)), coord_frame="head"
    )
    info.set_montage(montage, verbose="ERROR")
    coils = 0.12 * unit(24, 1)
    normals = unit(24, 2)
    info_meg = mne.create_info([f"MEG{i:03d}" for i in range(24)], 100.0, "mag", verbose="ERROR")
    for channel, pos, normal in zip(info_meg["chs"], coils, normals, strict=True):
        # A right-handed frame whose third axis is the normal.
        frame = np.linalg.qr(np.column_stack([normal, np.eye(3)]))[0]
        frame = np.column_stack([frame[:, 1], frame[:, 2], normal])
        frame[:, 0] *= np.sign(np.linalg.det(frame))
        channel["loc"][:] = np.concatenate([pos, frame.T.ravel()])
        channel["coil_type"] = FIFF.FIFFV_COIL_POINT_MAGNETOMETER
        channel["coord_frame"] = FIFF.FIFFV_COORD_DEVICE
    with info_meg._unlock():
        info_meg["dev_head_t"] = mne.transforms.Transform("meg", "head")
    return info, info_meg, upper, coils, normals


def mne_lead_fields(order, source_pos, solver):
    """Lead fields (n_channels, n_sources, 3) of EEG and MEG by MNE's interface."""
    import mne

    info, info_meg, *_ = recording()
    vertices, faces = icosphere(order)
    surfaces = [dict(rr=r * vertices, tris=faces, ntri=len(faces), np=len(vertices)) for r in RADII]
    for surface, name in zip(surfaces, (4, 3, 1), strict=True):
        surface.update(id=name, coord_frame=5)
    surfaces = mne.bem._surfaces_to_bem(
        surfaces, [4, 3, 1], list(SIGMA), rescale=False, incomplete="raise"
    )
    solution = mne.make_bem_solution(surfaces, solver=solver, verbose="ERROR")
    normals = np.tile([0.0, 0.0, 1.0], (len(source_pos), 1))
    src = mne.setup_volume_source_space(
        pos={"rr": source_pos, "nn": normals}, verbose="ERROR", mindist=0.0
    )
    result = []
    for these, kind in ((info, "eeg"), (info_meg, "meg")):
        forward = mne.make_forward_solution(
            these,
            mne.transforms.Transform("head", "mri"),
            src,
            solution,
            meg=kind == "meg",
            eeg=kind == "eeg",
            mindist=0.0,
            verbose="ERROR",
        )
        data = forward["sol"]["data"]
        result.append(data.reshape(len(data), -1, 3))
    return result


def topography_errors(found, exact):
    """RDM in per cent of every source and component, each against the exact sphere."""
    found, exact = (x.reshape(len(x), -1) for x in (found, exact))
    found, exact = (x / np.linalg.norm(x, axis=0) for x in (found, exact))
    return 50 * np.linalg.norm(found - exact, axis=0)


def compare(order, eccentricity, solver):
    """Median errors of EEG and MEG: ours, then the other's."""
    _, _, electrodes, coils, normals = recording()
    pos = 0.08 * eccentricity * unit(25, 4)
    vertices, faces = icosphere(order)
    bem = BEM([r * vertices for r in RADII], [faces] * 3, SIGMA)
    lead_field = np.asarray(bem.transfer(electrodes, coils, normals)(pos))
    ours = lead_field[: len(electrodes)], lead_field[len(electrodes) :]
    other = mne_lead_fields(order, pos, solver)
    sigma = SIGMA[::-1]
    exact = [
        np.asarray(
            sphere_eeg(
                pos, electrodes, radii=RADII[::-1], sigma_radial=sigma, sigma_tangential=sigma
            )
        ),
        np.asarray(sphere_meg(pos, coils, normals)),
    ]
    errors = []
    for mine, theirs, truth, is_eeg in zip(ours, other, exact, (True, False), strict=True):
        if is_eeg:
            mine, theirs, truth = (x - x.mean(axis=0) for x in (mine, theirs, truth))
        else:
            # Radial sources have no field.
            tangent = np.cross(pos, unit(25, 6))
            mine, theirs, truth = (
                np.einsum("csk,sk->cs", x, tangent) for x in (mine, theirs, truth)
            )
        errors.append([np.median(topography_errors(x, truth)) for x in (mine, theirs)])
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("eccentricity", [0.3, 0.7, 0.9, 0.98])
def test_ahead_of_linear_collocation(eccentricity):
    eeg, meg = compare(2, eccentricity, "mne")
    assert eeg[0] < 0.4 * eeg[1]
    assert meg[0] < 0.4 * meg[1]


@pytest.mark.oracle
@pytest.mark.parametrize("eccentricity", [0.3, 0.7, 0.9, 0.98])
def test_not_behind_openmeeg(eccentricity):
    pytest.importorskip("openmeeg")
    eeg, meg = compare(2, eccentricity, "openmeeg")
    assert eeg[0] < 1.2 * eeg[1]
    assert meg[0] < 1.2 * meg[1]
