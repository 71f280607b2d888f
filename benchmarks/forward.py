"""Accuracy and speed of the head models, side by side with MNE and, where installed, OpenMEEG.

    OPENBLAS_NUM_THREADS=1 uv run --group oracle --with numba python benchmarks/forward.py

numba makes MNE several times faster, so it is there. `--parts sphere bem fem heads` picks some.

Spheres: three shells of radii 80, 86, 92 mm, skull 1:80, 64 electrodes on the upper 65 % of the
head, 102 point magnetometers at 120 mm, half of them radial, half tilted (a purely radial array
would hide the volume currents). 50 dipoles for each eccentricity, which is the radius over that
of the innermost surface; truth is the exact series and Sarvas' formula. With EEG against its
average,

    RDM = 50 |a/|a| - b/|b||   (per cent of the largest possible),   MAG = 100 (|a|/|b| - 1).

Times are CPU seconds of one process after compilation, which is printed apart; BEM and FEM are
prepared once to compile and once to be timed. Without MNE (`--no-peer`) the script runs on a bare
GPU node. OpenMEEG is looked for and left out if it is not there.
"""

import argparse
import importlib.util
import json
import os
import time
import warnings
from pathlib import Path

# One thread for everyone: CPU seconds of several threads waiting for each other mean little.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import numpy as np
from machine import describe_machine, peak_memory_mib

RADII = np.array([0.080, 0.086, 0.092])
SIGMA = np.array([0.33, 0.33 / 80, 0.33])
ECCENTRICITIES = (0.3, 0.7, 0.8, 0.9, 0.95, 0.98)
N_DIPOLES = 50
N_TIMED = 8000
# Four layers: brain, CSF, skull (radial, tangential), skin.
FEM_RADII = np.array([0.078, 0.080, 0.086, 0.092])
FEM_SIGMA = (0.33, 1.79, (0.01, 0.03), 0.43)


def main():
    """Run the parts that were asked for, print their tables, write the JSON."""
    options = _options()
    jax.config.update("jax_enable_x64", options.precision == 64)
    # Sources at 98 % of the radius are meant to be close.
    warnings.filterwarnings("ignore", ".*closer to the innermost surface.*", UserWarning)
    has_mne = not options.no_peer and importlib.util.find_spec("mne") is not None
    parts = {"sphere": sphere, "bem": bem, "fem": fem, "heads": heads}
    result = {"machine": describe_machine(), "precision": options.precision, "n_timed": N_TIMED}
    for name in options.parts:
        result[name] = parts[name](options, has_mne)
        result[name]["peak_memory_mib"] = round(peak_memory_mib())
        if options.out:
            Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def sphere(options, has_mne):
    """Sarvas' formula and equivalent dipoles: accuracy and dipoles per CPU second."""
    from bayes_esi.forward import Sphere, fit_equivalent_dipoles, sphere_meg

    electrodes, coils, normals = sensors()
    head = Sphere(RADII, SIGMA)
    fitted = fit_equivalent_dipoles(RADII, SIGMA, SIGMA)
    errors = accuracy(lambda pos: fitted.eeg(pos, electrodes), _exact_eeg, average=True)
    pos = timed_sources()
    rates = {
        "meg": N_TIMED / _cpu_seconds(lambda: sphere_meg(pos, coils, normals)),
        "eeg_equivalent": N_TIMED / _cpu_seconds(lambda: fitted.eeg(pos, electrodes)),
        "eeg_exact": N_TIMED / _cpu_seconds(lambda: head.eeg(pos, electrodes)),
    }
    found = {
        "n_equivalent_dipoles": fitted.n_dipoles,
        "fit_error": float(fitted.error),
        "worst_rdm_percent": max(row["rdm_max"] for rows in errors.values() for row in rows),
        "dipoles_per_cpu_second": rates,
    }
    print(f"equivalent dipoles: worst RDM {found['worst_rdm_percent']:.1e} %")
    if has_mne:
        mne_rates, difference, mne_errors = _mne_sphere(electrodes, coils, normals, pos)
        found["mne_dipoles_per_cpu_second"] = mne_rates
        found["meg_difference_to_mne"] = difference
        found["mne_eeg"] = mne_errors
        found["ratio_to_mne"] = {
            "meg": rates["meg"] / mne_rates["meg"],
            "eeg_equivalent": rates["eeg_equivalent"] / mne_rates["eeg"],
        }
        _print_table("MNE sphere EEG", mne_errors)
    print({k: found[k] for k in found if "per_cpu" in k or "ratio" in k})
    return found


def bem(options, has_mne):
    """Boundary elements on three concentric icospheres."""
    from bayes_esi.forward import BEM
    from bayes_esi.forward.surfaces import icosphere

    electrodes, coils, normals = sensors()
    pos, found = timed_sources(), {}
    for order in options.orders:
        vertices, faces = icosphere(order)
        surfaces = [radius * vertices for radius in RADII[::-1]], [faces] * 3
        first = _cpu_seconds(lambda s=surfaces: _prepared(BEM(*s, SIGMA[::-1])), warm=False)
        start = time.process_time()
        head = _prepared(BEM(*surfaces, SIGMA[::-1]))
        prepared = time.process_time() - start
        head.transfer(electrodes, coils, normals)
        start = time.process_time()
        head.with_conductivity(1.1 * SIGMA[::-1]).transfer(electrodes, coils, normals)
        resolved = time.process_time() - start
        transfer = head.transfer(electrodes, coils, normals)
        row = {
            "preparation_s": prepared,
            "preparation_with_compilation_s": first,
            "other_conductivities_s": resolved,
            "lead_fields_s": _cpu_seconds(lambda t=transfer: t(pos)),
            "eeg": accuracy(lambda p, h=head: h.eeg(p, electrodes), _exact_eeg, average=True),
            "meg": accuracy(lambda p, h=head: h.meg(p, coils, normals), _exact_meg),
        }
        row["peak_memory_mib"] = round(peak_memory_mib())  # so far: of all that ran before
        print(
            f"BEM, 3 x {len(vertices)}: prepared {prepared:.1f} s ({first:.1f} s with "
            f"compilation), {N_TIMED} sources {row['lead_fields_s']:.1f} s"
        )
        _print_table("EEG", row["eeg"])
        _print_table("MEG", row["meg"])
        if has_mne and order <= options.peer_order:
            row["mne"] = _mne_bem(surfaces, electrodes, coils, normals, pos)
            print(
                f"MNE, 3 x {len(vertices)}: prepared {row['mne']['preparation_s']:.1f} s, "
                f"{N_TIMED} sources {row['mne']['lead_fields_s']:.1f} s"
            )
            _print_table("MNE EEG", row["mne"]["eeg"])
            _print_table("MNE MEG", row["mne"]["meg"])
        if has_mne and order <= 3 and importlib.util.find_spec("openmeeg") is not None:
            # Finer meshes take OpenMEEG a quarter of an hour.
            row["openmeeg"] = _mne_bem(
                surfaces, electrodes, coils[:0], normals[:0], pos, "openmeeg"
            )
            print(
                f"OpenMEEG, 3 x {len(vertices)}: prepared {row['openmeeg']['preparation_s']:.1f} s"
            )
            _print_table("OpenMEEG EEG", row["openmeeg"]["eeg"])
        found[str(len(vertices))] = row
    return found


def fem(options, has_mne):
    """Finite elements on the four-layer sphere with an anisotropic skull."""
    from bayes_esi.forward import FEM, layered_mesh, sphere_eeg
    from bayes_esi.forward.surfaces import icosphere

    del has_mne
    electrodes, coils, normals = sensors()
    vertices, faces = icosphere(options.fem_order)
    start = time.process_time()
    mesh = layered_mesh(
        [radius * vertices for radius in FEM_RADII], faces, reference=vertices, **_FEM_MESH
    )
    meshed = time.process_time() - start
    start = time.process_time()
    head = FEM(mesh, FEM_SIGMA, centre=np.zeros(3))
    assembled = time.process_time() - start
    solved = _cpu_seconds(lambda: head.transfer(electrodes), warm=False)

    def exact(pos):
        pairs = [np.broadcast_to(s, 2) for s in FEM_SIGMA]
        return sphere_eeg(
            pos,
            electrodes,
            radii=FEM_RADII,
            sigma_radial=[p[0] for p in pairs],
            sigma_tangential=[p[1] for p in pairs],
        )

    radius = FEM_RADII[0]
    found = {
        "n_nodes": mesh.n_nodes,
        "mesh_s": meshed,
        "assembly_s": assembled,
        "transfer_s": solved,
        "lead_fields_s": _cpu_seconds(lambda: head.eeg(timed_sources(radius), electrodes)),
        "eeg": accuracy(lambda p: head.eeg(p, electrodes), exact, average=True, radius=radius),
        "meg": accuracy(lambda p: head.meg(p, coils, normals), _exact_meg, radius=radius),
    }
    print(f"FEM, {mesh.n_nodes} nodes: transfer matrix of 64 electrodes {solved:.1f} s")
    _print_table("EEG", found["eeg"])
    _print_table("MEG", found["meg"])
    return found


# The mesh that gives about 100,000 nodes on icospheres of 10,242 vertices.
_FEM_MESH = {"spacing": 0.0041, "n_layers": (1, 4, 1)}


def heads(options, has_mne):
    """Real heads: against OpenMEEG on the same surfaces, where it is installed."""
    found = {}
    if not has_mne:
        return found
    has_openmeeg = importlib.util.find_spec("openmeeg") is not None
    for name, (surfaces, electrodes, pos) in _real_heads(options).items():
        from bayes_esi.forward import BEM

        ours = _referenced(BEM(*surfaces, SIGMA_REAL).eeg(pos, electrodes))
        mne_lead = _referenced(_mne_lead_field(surfaces, SIGMA_REAL, electrodes, pos))
        row = {"n_sources": len(pos), "mne_against_ours": _summary(*_compare(mne_lead, ours))}
        if has_openmeeg:
            peer = _referenced(
                _mne_lead_field(surfaces, SIGMA_REAL, electrodes, pos, solver="openmeeg")
            )
            row["ours_against_openmeeg"] = _summary(*_compare(ours, peer))
            row["mne_against_openmeeg"] = _summary(*_compare(mne_lead, peer))
        found[name] = row
        print(name, json.dumps(row))
    return found


SIGMA_REAL = np.array([0.33, 0.0066, 0.33])


def sensors():
    """Electrodes, coils and their normals: (64, 3), (102, 3), (102, 3), in m."""
    electrodes = RADII[-1] * _spiral(64, 0.65)
    outward = _spiral(102, 0.65)
    tilt = np.cross(outward, [0.3, -0.5, 0.8])
    tilt /= np.linalg.norm(tilt, axis=1, keepdims=True)
    tilted = outward + tilt
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    normals = np.where((np.arange(102) % 2 == 0)[:, None], outward, tilted)
    return electrodes, 0.120 * outward, normals


def timed_sources(radius=RADII[0]):
    """Positions (n_timed, 3) all over the brain, none above 95 % of its radius."""
    rng = np.random.default_rng(7)
    direction = rng.standard_normal((N_TIMED, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return 0.95 * radius * rng.uniform(0, 1, (N_TIMED, 1)) ** (1 / 3) * direction


def accuracy(lead_field_of, exact, *, average=False, radius=RADII[0]):
    """RDM and MAG by eccentricity: {"radial": rows, "tangential": rows}."""
    table = {"radial": [], "tangential": []}
    for eccentricity in ECCENTRICITIES:
        rng = np.random.default_rng(int(1000 * eccentricity))
        direction = rng.standard_normal((N_DIPOLES, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        across = np.cross(direction, rng.standard_normal((N_DIPOLES, 3)))
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        pos = eccentricity * radius * direction
        leads = [np.asarray(f(pos), np.float64) for f in (lead_field_of, exact)]
        if average:
            leads = [_referenced(lead) for lead in leads]
        for kind, moment in (("radial", direction), ("tangential", across)):
            if kind == "radial" and not average:
                continue  # silent in MEG
            a, b = (np.einsum("csk,sk->sc", lead, moment) for lead in leads)
            table[kind].append({"eccentricity": eccentricity} | _summary(*_rdm_mag(a, b)))
    return {kind: rows for kind, rows in table.items() if rows}


def _summary(rdm, mag):
    return {
        "rdm_median": _short(np.median(rdm)),
        "rdm_95": _short(np.quantile(rdm, 0.95)),
        "rdm_max": _short(rdm.max()),
        "mag_median": _short(np.median(mag)),
        "mag_abs_max": _short(np.abs(mag).max()),
    }


def _short(value):
    return float(f"{value:.4g}")


def _rdm_mag(a, b):
    """Of rows (n_sources, n_channels), in per cent."""
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    rdm = 50 * np.linalg.norm(a / norm_a[:, None] - b / norm_b[:, None], axis=1)
    return rdm, 100 * (norm_a / norm_b - 1)


def _compare(lead_field, reference):
    """RDM and MAG of all components of all sources."""
    shape = (len(reference), -1)
    return _rdm_mag(lead_field.reshape(shape).T, reference.reshape(shape).T)


def _referenced(lead_field):
    lead_field = np.asarray(lead_field, np.float64)
    return lead_field - lead_field.mean(axis=0)


def _exact_eeg(pos):
    from bayes_esi.forward import sphere_eeg

    electrodes = sensors()[0]
    return sphere_eeg(pos, electrodes, radii=RADII, sigma_radial=SIGMA, sigma_tangential=SIGMA)


def _exact_meg(pos):
    from bayes_esi.forward import sphere_meg

    return sphere_meg(pos, *sensors()[1:])


def _prepared(head):
    """Solve for one electrode, so that the factorisation counts as preparation."""
    head.transfer(head.surfaces[0][0][:1])
    return head


def _spiral(n, part):
    """Directions (n, 3) spread evenly over the upper part of a sphere."""
    z = 1 - 2 * part * (np.arange(n) + 0.5) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z], axis=1)


def _cpu_seconds(function, *, warm=True):
    """CPU seconds of one call: the first, or the median of nine (three if slow) after it."""
    seconds = []
    while len(seconds) < (10 if warm else 1):
        start = time.process_time()
        jax.block_until_ready(function())
        seconds.append(time.process_time() - start)
        if len(seconds) > 3 and seconds[-1] > 0.5:
            break
    return float(np.median(seconds[1:] if warm else seconds))


def _mne_info(electrodes, coils, normals):
    import mne
    from mne.io.constants import FIFF

    names = [f"EEG{i:03d}" for i in range(len(electrodes))]
    names += [f"MEG{i:03d}" for i in range(len(coils))]
    kinds = ["eeg"] * len(electrodes) + ["mag"] * len(coils)
    info = mne.create_info(names, 1000.0, kinds, verbose="ERROR")
    for channel, pos in zip(info["chs"], electrodes, strict=False):
        channel["loc"][:6] = [*pos, 0, 0, 0]
        channel["coord_frame"] = FIFF.FIFFV_COORD_HEAD
    for channel, pos, normal in zip(info["chs"][len(electrodes) :], coils, normals, strict=True):
        helper = np.eye(3)[np.argmin(np.abs(normal))]
        first = np.cross(normal, helper) / np.linalg.norm(np.cross(normal, helper))
        channel["loc"] = np.concatenate([pos, first, np.cross(normal, first), normal])
        channel["coil_type"] = FIFF.FIFFV_COIL_POINT_MAGNETOMETER
        channel["coord_frame"] = FIFF.FIFFV_COORD_DEVICE
    info["dev_head_t"] = mne.Transform("meg", "head", np.eye(4))
    return info


def _mne_sources(pos):
    import mne

    normals = np.tile([0.0, 0.0, 1.0], (len(pos), 1))
    return mne.setup_volume_source_space(
        pos={"rr": pos, "nn": normals}, sphere_units="m", mindist=0.0, verbose="ERROR"
    )


def _mne_forward(info, model, src):
    """Lead fields (n_eeg, n_sources, 3) and (n_meg, n_sources, 3) by MNE."""
    import mne

    forward = mne.make_forward_solution(
        info, mne.Transform("head", "mri"), src, model, mindist=0.0, verbose="ERROR"
    )
    rows = forward["sol"]["row_names"]
    lead = forward["sol"]["data"].reshape(len(rows), -1, 3)
    is_eeg = np.array([name.startswith("EEG") for name in rows])
    return lead[is_eeg], lead[~is_eeg]


def _mne_sphere(electrodes, coils, normals, pos):
    import mne

    from bayes_esi.forward import sphere_meg

    head = mne.make_sphere_model(
        (0.0, 0.0, 0.0),
        RADII[-1],
        relative_radii=tuple(RADII / RADII[-1]),
        sigmas=tuple(SIGMA),
        verbose="ERROR",
    )
    empty = np.zeros((0, 3))
    infos = {
        "meg": _mne_info(empty, coils, normals),
        "eeg": _mne_info(electrodes, empty, empty),
    }
    src = _mne_sources(pos)
    rates = {
        kind: N_TIMED / _cpu_seconds(lambda i=info: _mne_forward(i, head, src))
        for kind, info in infos.items()
    }
    theirs = _mne_forward(infos["meg"], head, src)[1]
    ours = np.asarray(sphere_meg(pos, coils, normals))
    difference = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
    errors = accuracy(
        lambda p: _mne_forward(infos["eeg"], head, _mne_sources(p))[0], _exact_eeg, average=True
    )
    return rates, difference, errors


def _mne_bem_solution(surfaces, conductivity, solver="mne"):
    import mne
    from mne.io.constants import FIFF
    from mne.surface import complete_surface_info

    ids = {
        1: (FIFF.FIFFV_BEM_SURF_ID_BRAIN,),
        3: (
            FIFF.FIFFV_BEM_SURF_ID_HEAD,
            FIFF.FIFFV_BEM_SURF_ID_SKULL,
            FIFF.FIFFV_BEM_SURF_ID_BRAIN,
        ),
    }[len(surfaces[0])]
    made = []
    for number, vertices, faces, sigma in zip(ids, *surfaces, conductivity, strict=True):
        surface = {
            "id": number,
            "sigma": float(sigma),
            "rr": np.asarray(vertices, float),
            "tris": np.asarray(faces, np.int32),
            "np": len(vertices),
            "ntri": len(faces),
            "coord_frame": int(FIFF.FIFFV_COORD_MRI),
        }
        made.append(complete_surface_info(surface, do_neighbor_vert=False, verbose="ERROR"))
    return mne.make_bem_solution(made, solver=solver, verbose="ERROR")


def _mne_bem(surfaces, electrodes, coils, normals, pos, solver="mne"):
    """MNE's own boundary elements, or those of OpenMEEG (which prepares once for each forward)."""
    info = _mne_info(electrodes, coils, normals)
    start = time.process_time()
    head = _mne_bem_solution(surfaces, SIGMA[::-1], solver)
    prepared = time.process_time() - start
    found = {
        "preparation_s": prepared,
        "eeg": accuracy(
            lambda p: _mne_forward(info, head, _mne_sources(p))[0], _exact_eeg, average=True
        ),
    }
    if solver == "mne":
        src = _mne_sources(pos)
        found["lead_fields_s"] = _cpu_seconds(lambda: _mne_forward(info, head, src))
        found["meg"] = accuracy(lambda p: _mne_forward(info, head, _mne_sources(p))[1], _exact_meg)
    return found


def _mne_lead_field(surfaces, conductivity, electrodes, pos, solver="mne"):
    info = _mne_info(electrodes, np.zeros((0, 3)), np.zeros((0, 3)))
    solution = _mne_bem_solution(surfaces, conductivity, solver)
    return _mne_forward(info, solution, _mne_sources(pos))[0]


def _real_heads(options):
    """Surfaces (outermost first), electrodes and sources of two heads."""
    import mne

    import bayes_esi as be
    from bayes_esi.forward.surfaces import is_inside, nearest_points
    from bayes_esi.io.mne_forward import bem_surfaces_of

    found = {}
    head = be.template_head()
    info = head.info("biosemi64")
    electrodes = np.array([channel["loc"][:3] for channel in info["chs"]])
    found["average head"] = (head.surfaces(3), electrodes, head.source_pos[:: options.every])
    sample = Path(options.data) / "sample"
    if sample.is_dir():
        evoked = mne.read_evokeds(sample / "sample_left-ave.fif.gz", 0, verbose="ERROR")
        bem = sample / "sample-1280-1280-1280-bem.fif"
        surfaces = bem_surfaces_of(bem, sample / "sample-trans.fif")
        picked = evoked.copy().pick("eeg")
        electrodes = np.array([channel["loc"][:3] for channel in picked.info["chs"]])
        inner = surfaces[0][-1], surfaces[1][-1]
        step = 0.010
        low, high = inner[0].min(axis=0), inner[0].max(axis=0)
        grid = np.stack(
            np.meshgrid(*(np.arange(a, b, step) for a, b in zip(low, high, strict=True))), axis=-1
        ).reshape(-1, 3)
        grid = grid[is_inside(grid, *inner)]
        grid = grid[nearest_points(grid, *inner).distance > 0.005]
        found["sample subject"] = (surfaces, electrodes, grid)
    return found


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["sphere", "bem", "fem", "heads"])
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--orders", type=int, nargs="+", default=[3, 4], help="of the icospheres")
    parser.add_argument("--peer-order", type=int, default=4, help="finest mesh given to MNE")
    parser.add_argument("--fem-order", type=int, default=5)
    parser.add_argument("--every", type=int, default=4, help="of the sources of the average head")
    parser.add_argument("--data", default=os.environ.get("BAYES_ESI_DATA", "../shared/data"))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", help="JSON file to write")
    return parser.parse_args()


def _print_table(title, table):
    for kind, rows in table.items():
        cells = "  ".join(
            f"{row['eccentricity']:g}: {row['rdm_median']:.3f} ({row['rdm_max']:.2f})"
            for row in rows
        )
        mags = ", ".join(f"{row['mag_median']:+.2f}" for row in rows)
        print(f"  {title} {kind:10} RDM % median (max)  {cells}   MAG % {mags}", flush=True)


if __name__ == "__main__":
    main()
