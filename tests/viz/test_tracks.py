"""Figures of dipoles that come and go: they carry the numbers of the posterior, in its units."""

import dataclasses
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.collections import (  # noqa: E402
    EllipseCollection,
    LineCollection,
    PolyCollection,
    QuadMesh,
)

import bayes_esi as be  # noqa: E402
from bayes_esi.models.dynamic_dipoles import DynamicDipoles  # noqa: E402
from bayes_esi.posterior.tracks import TrackDraws, TrackPosterior  # noqa: E402
from bayes_esi.viz import tracks as viz  # noqa: E402
from bayes_esi.viz.common import main_direction  # noqa: E402
from bayes_esi.viz.track_brain import values_at  # noqa: E402
from bayes_esi.viz.track_intensity import at_sample, chosen_samples  # noqa: E402
from bayes_esi.viz.track_number import prior_number  # noqa: E402
from bayes_esi.viz.track_spread import moment_along, track_field_law  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")

KINDS = ("overview", "raster", "n_dipoles", "intensity", "moments", "predictive", "trace")


class Life(NamedTuple):
    """A dipole as the made-up posterior has it; times in samples, moment in A·m."""

    place: int
    birth: float
    death: float
    spread: float = 2.0  # standard deviation of both times
    probability: float = 1.0
    moment: float = 4e-8
    ori: tuple = (1.0, 0.2, 0.0)


ONE = (Life(5, 20, 55),)
TWO = (ONE[0], Life(50, 40, 100, 4, 0.8, 3e-8, (0, 1, 0.3)))
THREE = (*TWO, Life(27, 60, 75, 3, 0.12, 2e-8, (0, 0.2, 1)))


def make_problem(lives, n_times=100, n_orient=3):
    """EEG of 24 electrodes around a grid of 64 places; the data hold the probable lives."""
    rng = np.random.default_rng(0)
    grid = np.arange(-0.045, 0.046, 0.03)
    source_pos = np.stack(np.meshgrid(grid, grid, grid + 0.03), axis=-1).reshape(-1, 3)
    sensor_pos = rng.standard_normal((24, 3))
    sensor_pos[:, 2] = np.abs(sensor_pos[:, 2])
    sensor_pos *= 0.11 / np.linalg.norm(sensor_pos, axis=1, keepdims=True)
    offset = sensor_pos[:, None] - source_pos
    lead_field = offset / np.linalg.norm(offset, axis=2, keepdims=True) ** 3
    normals = None
    if n_orient == 1:
        normals = source_pos / np.linalg.norm(source_pos, axis=1, keepdims=True)
        lead_field = np.sum(lead_field * normals, axis=2, keepdims=True)
    samples = np.arange(n_times)
    clean = np.zeros((len(sensor_pos), n_times))
    for life in lives:
        if life.probability > 0.5:
            phase = np.clip((samples - life.birth + 0.5) / (life.death - life.birth), 0, 1)
            course = life.moment * np.sin(np.pi * phase)
            ori = np.array(life.ori) / np.linalg.norm(life.ori)
            field = lead_field[:, life.place] @ ori[: lead_field.shape[2]]
            clean += field[:, None] * course
    std = 0.05 * np.abs(clean).max() if lives else 1e-6
    return be.Problem.from_arrays(
        clean + std * rng.standard_normal(clean.shape),
        lead_field,
        source_pos,
        std**2 * np.eye(len(sensor_pos)),
        source_normals=normals,
        times=0.005 * samples - 0.05,
        ch_types=["eeg"] * len(sensor_pos),
        sensor_pos=sensor_pos,
    )


def make_posterior(
    lives, *, n_runs=2, n_draws=60, n_times=100, n_orient=3, max_dipoles=4, blur=0.3
):
    """Draws around some lives: times normal, places the given one or (a share) a neighbour."""
    rng = np.random.default_rng(1)
    problem = make_problem(lives, n_times, n_orient)
    places = np.full((n_runs, n_draws, n_times, max_dipoles), -1)
    is_new = np.zeros(places.shape, bool)
    for run, draw in np.ndindex(n_runs, n_draws):
        for life in lives:
            if rng.random() > life.probability:
                continue
            birth, death = np.rint(rng.normal((life.birth, life.death), life.spread)).astype(int)
            birth = int(np.clip(birth, 0, n_times - 1))
            death = int(np.clip(death, birth + 1, n_times))
            near = problem.neighbours[life.place]
            place = rng.choice(near[near >= 0]) if rng.random() < blur else life.place
            own = places[run, draw, birth:death]
            slot = np.flatnonzero(np.all(own < 0, axis=0))[0]
            own[:, slot] = place
            is_new[run, draw, birth, slot] = True
    shape = (n_runs, n_draws)
    series = (n_runs, n_times)
    draws = TrackDraws(
        places=places,
        is_new=is_new,
        moment_std=2e-8 * np.exp(0.1 * rng.standard_normal(shape)),
        noise_std=np.exp(0.02 * rng.standard_normal((*shape, 1))),
        birth_prob=np.full(shape, 0.01),
        death_prob=np.full(shape, 1 / 30),
        log_likelihood=3 * rng.standard_normal(shape) - 1234,
        log_evidence=np.full(n_runs, -1300.0),
        trace={
            "ess": 500 + 100 * rng.random(series),
            "n_ancestors": np.rint(np.exp(np.linspace(1, 6, n_times)) * np.ones(series)),
            "log_evidence_increment": rng.standard_normal(series) - 12,
        },
    )
    model = DynamicDipoles(max_dipoles=max_dipoles)
    return TrackPosterior(problem, model, "particle_smoother", draws, be.Status.OK)


@pytest.fixture(scope="module")
def posterior():
    """Three dipoles, two of which overlap in time; the third is rare."""
    return make_posterior(THREE)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def figure_of(drawn):
    return drawn if hasattr(drawn, "savefig") else np.ravel(drawn)[0].figure


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def meshes(ax):
    return [c for c in ax.collections if isinstance(c, QuadMesh)]


def with_draws(posterior, **changes):
    kept = {k: changes.pop(k) for k in ("method", "status", "model") if k in changes}
    return dataclasses.replace(
        posterior, draws=dataclasses.replace(posterior.draws, **changes), **kept
    )


def filtered(posterior):
    """The same trajectories, with marginals as a filter tells them: nobody knows what follows."""
    return with_draws(
        posterior,
        method="particle_filter",
        n_dipoles_pmf=np.roll(posterior.n_dipoles_pmf, 3, axis=0),
        intensity=np.roll(posterior.intensity, 3, axis=0),
    )


def alive_of(posterior, track):
    """Whether a dipole lives in each pooled draw at each sample: found by its place.

    The three live at places that no other of them can take.
    """
    near = np.linalg.norm(posterior.problem.source_pos - track.pos, axis=1) < 0.032
    places = posterior.draws.places
    alive = np.any(near[places] & (places >= 0), axis=3)
    return alive.reshape(-1, posterior.problem.n_times)


def life_of(posterior, track):
    """95 % intervals and medians of the edges of a life, in ms: (3,) of birth and of death."""
    alive = alive_of(posterior, track)
    alive = alive[alive.any(axis=1)]
    births = np.argmax(alive, axis=1)
    levels = (0.025, 0.5, 0.975)
    return tuple(
        edge(posterior, np.quantile(x, levels, method="inverted_cdf"))
        for x in (births, births + alive.sum(axis=1))
    )


def edge(posterior, sample):
    """Where the cell of a sample begins, in ms: half of 5 ms before it."""
    return 1e3 * posterior.problem.times[0] + 5.0 * np.asarray(sample) - 2.5


# ---------------------------------------------------------------- raster


def test_bars_reach_from_median_birth_to_median_death_with_95_percent_whiskers(posterior):
    _, given = plt.subplots()
    ax = viz.plot_raster(posterior, ax=given)
    assert ax is given
    frames = [line for line in ax.lines if len(line.get_xdata()) > 2]
    whiskers = [x for x in ax.lines if x.get_marker() == "None" and len(x.get_xdata()) == 2]
    assert len(frames) == 3
    for row, (frame, track) in enumerate(zip(frames, posterior.tracks(), strict=True)):
        births, deaths = life_of(posterior, track)
        x, y = frame.get_data()
        assert (min(x), max(x)) == pytest.approx((births[1], deaths[1]))
        assert (min(y) + max(y)) / 2 == pytest.approx(row)
        spans = [line.get_xdata() for line in whiskers[2 * row : 2 * row + 2]]
        np.testing.assert_allclose(spans, [births[[0, 2]], deaths[[0, 2]]])
    x, y = frames[0].get_data()
    assert (x[0], y[0]) == (x[-1], y[-1])  # closed
    assert ax.get_xlabel() == "time (ms)"


def test_bars_are_as_opaque_as_the_track_is_probable_and_alive(posterior):
    ax = viz.plot_raster(posterior)
    bars = meshes(ax)
    assert len(bars) == len(posterior.tracks()) == 3
    for bar, track in zip(bars, posterior.tracks(), strict=True):
        shown = bar.get_array().ravel()
        np.testing.assert_allclose(shown, alive_of(posterior, track).mean(axis=0), atol=1e-12)
        assert bar.norm.vmin == 0 and bar.norm.vmax == 1
        fade = bar.get_cmap()([0.0, 0.5, 1.0])[:, 3]
        assert fade[0] == 0 and fade[1] == pytest.approx(fade[2] / 2, rel=0.01)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    for number, (label, track) in enumerate(zip(labels, posterior.tracks(), strict=True), start=1):
        assert label.startswith(f"{number}: p = {track.probability:.2f}\n(")
        assert label.endswith("mm")


def test_a_track_that_outlives_the_window_is_open_and_a_rare_one_dashed(posterior):
    ax = viz.plot_raster(posterior)
    frames = [line for line in ax.lines if len(line.get_xdata()) > 2]
    second, third = posterior.tracks()[1:]
    assert second.death_pmf[-1] > 0.5 and third.probability < 0.5
    x = frames[1].get_xdata()
    assert len(x) == 4 and x[0] == x[-1] == ax.get_xlim()[1]
    assert [frame.get_linestyle() for frame in frames] == ["-", "-", "--"]
    arrows = [line for line in ax.lines if line.get_marker() == ">"]
    assert len(arrows) == 1 and arrows[0].get_xdata()[0] == ax.get_xlim()[1]


def test_raster_says_what_it_leaves_out(posterior):
    ax = viz.plot_raster(posterior, min_probability=0.5)
    assert len(meshes(ax)) == 2
    assert "not drawn: 1 below p = 0.5" in texts(ax.figure)
    assert "not drawn" not in texts(viz.plot_raster(posterior).figure)


def test_the_power_of_the_data_lies_above_the_raster(posterior):
    ax = viz.plot_raster(posterior)
    (power,) = ax.child_axes
    course = power.lines[0]
    np.testing.assert_allclose(course.get_xdata(), 1e3 * posterior.problem.times)
    expected = np.sqrt(np.mean(posterior.problem.data**2, axis=0))
    np.testing.assert_allclose(course.get_ydata(), expected)
    assert power.get_xlim() == ax.get_xlim()
    assert "whitened" in power.get_ylabel()
    # Noise alone has a root mean square of 1: nobody lives in the first 15 samples.
    assert expected[:15].mean() == pytest.approx(1.0, abs=0.1)


# ---------------------------------------------------------------- number


def test_number_is_a_law_at_each_sample_and_its_mean(posterior):
    _, given = plt.subplots()
    ax = viz.plot_n_dipoles(posterior, ax=given)
    assert ax is given
    (mesh,) = meshes(ax)
    shown = mesh.get_array().reshape(posterior.model.max_dipoles + 1, -1)
    np.testing.assert_allclose(shown.sum(axis=0), 1.0)
    numbers = np.sum(posterior.draws.places >= 0, axis=3)  # (n_runs, n_draws, n_times)
    for n, row in enumerate(shown):
        np.testing.assert_allclose(
            row, posterior.run_weights @ np.mean(numbers == n, axis=1), atol=1e-12
        )
    assert mesh.get_cmap().name == "Reds"
    *runs, expected, _ = ax.lines
    assert len(runs) == 2
    np.testing.assert_allclose([run.get_ydata() for run in runs], numbers.mean(axis=1))
    mean = posterior.run_weights @ numbers.mean(axis=1)
    np.testing.assert_allclose(expected.get_ydata(), mean, atol=1e-12)
    np.testing.assert_allclose(expected.get_xdata(), 1e3 * posterior.problem.times)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (ms)", "number of dipoles")


def test_number_before_data_is_that_of_births_and_deaths():
    model = DynamicDipoles(birth_prob=0.3, death_prob=0.2, max_dipoles=2)
    told = prior_number(model, 6)
    np.testing.assert_allclose(told[0], [0.7, 0.3, 0.0])
    rng = np.random.default_rng(0)
    number = np.zeros(40_000, int)
    for law in told:
        is_born = (number < 2) & (rng.random(number.size) < 0.3)
        number = rng.binomial(number, 0.8) + is_born
        shown = np.bincount(number, minlength=3) / number.size
        # Six laws of three numbers, each share within four standard errors.
        np.testing.assert_allclose(shown, law, atol=4 * 0.5 / np.sqrt(number.size))


def test_number_before_data_is_averaged_over_unknown_probabilities():
    class Uniform:
        """Of the shape of a NumPyro distribution, without importing it."""

        batch_shape = event_shape = ()

        def log_prob(self, value):
            return np.zeros_like(value)

        def sample(self, key, shape):
            return 0.1 + 0.2 * jax.random.uniform(key, shape)

    told = prior_number(DynamicDipoles(birth_prob=Uniform(), max_dipoles=3), 1)
    # Uniform from 0.1 to 0.3: mean 0.2, deviation 0.2 / sqrt(12); 200 draws are averaged.
    assert told[0, 1] == pytest.approx(0.2, abs=4 * 0.2 / np.sqrt(12 * 200))


def test_a_filter_is_said_to_know_only_what_was(posterior):
    ax = viz.plot_n_dipoles(filtered(posterior))
    expected, prior = ax.lines  # no line for each run: trajectories are not the filter's answer
    assert expected.get_label() == "expected, given the data so far"
    numbers = np.arange(posterior.model.max_dipoles + 1)
    shifted = np.roll(posterior.n_dipoles_pmf @ numbers, 3)
    np.testing.assert_allclose(expected.get_ydata(), shifted, atol=1e-12)
    assert prior.get_label() == "expected a priori"
    label = texts(viz.plot_intensity(filtered(posterior))[0].figure)
    assert "given the data so far" in label
    assert "given the data so far" not in texts(viz.plot_intensity(posterior)[0].figure)


# ---------------------------------------------------------------- intensity


def discs(ax):
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    return found


def test_intensity_is_drawn_at_the_peaks_of_the_tracks(posterior):
    samples = chosen_samples(posterior)
    tracks = posterior.tracks()
    peaks = [np.nanargmax(np.linalg.norm(t.moment_mean, axis=0) * t.prob_alive) for t in tracks]
    assert samples.tolist() == sorted(set(peaks))  # two may peak together
    axes = viz.plot_intensity(posterior)
    assert len(axes) == 3 * len(samples)
    largest = max(posterior.intensity[samples].max(axis=1))
    for row, sample in zip(axes.reshape(-1, 3), samples, strict=True):
        assert row[0].get_title() == f"{1e3 * posterior.problem.times[sample]:.0f} ms: sagittal"
        for ax, names in zip(row, ("yz", "xz", "xy"), strict=True):
            shown = discs(ax)
            intensity = posterior.intensity[sample]
            expected = np.sort(intensity[intensity > 1e-3 * intensity.max()])
            np.testing.assert_allclose(shown.get_array(), expected)
            assert shown.norm.vmax == pytest.approx(largest) and shown.norm.vmin == 0
            assert ax.get_xlabel().startswith(names[0]) and "(mm)" in ax.get_xlabel()
            assert ax.get_ylabel().startswith(names[1]) and "(mm)" in ax.get_ylabel()
        alive = [t.probability * t.prob_alive[sample] >= 0.05 for t in tracks]
        assert len(row[0].patches) == sum(alive)  # ellipses


def test_intensity_at_chosen_times(posterior):
    axes = viz.plot_intensity(posterior, times=[0.101, 0.3])
    assert [ax.get_title() for ax in axes[::3]] == ["100 ms: sagittal", "300 ms: sagittal"]
    _, given = plt.subplots(1, 3)
    axes = viz.plot_intensity(posterior, axes=given, times="mean")
    assert list(axes) == list(given)
    mean = posterior.intensity.mean(axis=0)
    np.testing.assert_allclose(discs(axes[0]).get_array(), np.sort(mean[mean > 1e-3 * mean.max()]))
    with pytest.raises(ValueError, match=r"times must lie between -0.05 and 0.445 s, got 3"):
        viz.plot_intensity(posterior, times=[0.1, 3.0])
    with pytest.raises(ValueError, match="axes must be six Axes, one for each view, got 3"):
        viz.plot_intensity(posterior, axes=given, times=[0.1, 0.2])


# ---------------------------------------------------------------- moments


def dense_law(posterior, draw=0):
    """Moments of all lives of a draw given all data at once: mean, covariance, and their index.

    The unknowns are the components of every life at every sample of it, in A·m; nothing here is
    recursive in time.
    """
    problem, persistence = posterior.problem, posterior.model.moment_persistence
    places = posterior.draws.places[0, draw]
    std, noise = posterior.draws.moment_std[0, draw], posterior.draws.noise_std[0, draw, 0]
    lives = [
        (slot, np.flatnonzero(places[:, slot] >= 0))
        for slot in np.flatnonzero(np.any(places >= 0, axis=0))
    ]
    index = [(slot, t) for slot, samples in lives for t in samples]
    d = problem.n_orient
    field = problem.lead_field / problem.moment_unit
    rank = len(problem.data)
    design = np.zeros((problem.n_times, rank, len(index), d))
    for i, (slot, t) in enumerate(index):
        design[t, :, i] = field[:, places[t, slot]]
    design = design.reshape(problem.n_times * rank, -1)
    prior = np.zeros((len(index), len(index)))
    for i, (slot, t) in enumerate(index):
        for j, (other, s) in enumerate(index):
            prior[i, j] = std**2 * persistence ** abs(t - s) * (slot == other)
    precision = np.kron(np.linalg.inv(prior), np.eye(d)) + design.T @ design / noise**2
    cov = np.linalg.inv(precision)
    mean = cov @ (design.T @ problem.data.T.ravel()) / noise**2
    return mean.reshape(-1, d), cov.reshape(len(index), d, len(index), d), index, design


@pytest.fixture(scope="module")
def one_draw():
    """A single draw of two lives that overlap in time: its law is Gaussian, and dense algebra."""
    lives = (Life(5, 4, 14, 0), Life(50, 9, 20, 0, 1.0, 3e-8, (0, 1, 0.3)))
    return make_posterior(lives, n_runs=1, n_draws=1, n_times=20, blur=0.0)


def test_moments_and_bands_are_those_of_dense_algebra(one_draw):
    mean, cov, index, _ = dense_law(one_draw)
    axes = viz.plot_moments(one_draw)
    assert axes[0].get_ylabel() == "moment (nA·m)" and axes[0].get_xlabel() == "time (ms)"
    for ax, track in zip(axes, one_draw.tracks(), strict=True):
        (slot,) = {
            slot for slot, t in index if track.place_pmf[one_draw.draws.places[0, 0, t, slot]] > 0.5
        }
        own = [i for i, (other, _) in enumerate(index) if other == slot]
        samples = [index[i][1] for i in own]
        moment = np.zeros((3, 20))
        moment[:, samples] = mean[own].T
        direction = main_direction(moment)
        course = 1e9 * direction @ moment[:, samples]
        std = 1e9 * np.sqrt([direction @ cov[i, :, i] @ direction for i in own])
        times = 1e3 * one_draw.problem.times[samples]

        (line,) = [c for c in ax.collections if isinstance(c, LineCollection)]
        pieces = np.array(line.get_segments())
        np.testing.assert_allclose(pieces[:, 0], np.stack([times, course], axis=1)[:-1], rtol=1e-6)
        np.testing.assert_allclose(pieces[:, 1], np.stack([times, course], axis=1)[1:], rtol=1e-6)
        assert np.abs(course).max() == course.max()
        bands = [c for c in ax.collections if isinstance(c, PolyCollection)]
        assert len(bands) == 2
        for band, width in zip(bands, (1.959964, 0.674490), strict=True):
            (path,) = band.get_paths()
            for t, low, high in zip(times, course - width * std, course + width * std, strict=True):
                drawn = path.vertices[np.isclose(path.vertices[:, 0], t)][:, 1]
                assert (drawn.min(), drawn.max()) == pytest.approx((low, high), rel=1e-5)


def test_the_field_is_that_of_dense_algebra(one_draw):
    problem = one_draw.problem
    mean, cov, _, design = dense_law(one_draw)
    size = design.shape[1]
    rank = len(problem.data)
    field = (design @ mean.ravel()).reshape(-1, rank).T
    spread = design @ cov.reshape(size, size) @ design.T
    colouring = np.linalg.pinv(problem.whitener)
    noise = one_draw.draws.noise_std[0, 0, 0]
    blocks = spread.reshape(problem.n_times, rank, problem.n_times, rank)
    variance = np.stack(
        [
            np.diag(colouring @ (blocks[t, :, t] + noise**2 * np.eye(rank)) @ colouring.T)
            for t in range(problem.n_times)
        ],
        axis=1,
    )
    told_mean, told_std = track_field_law(one_draw)
    np.testing.assert_allclose(told_mean, colouring @ field, atol=1e-9 * np.abs(field).max())
    np.testing.assert_allclose(told_std, np.sqrt(variance), rtol=1e-7)


@pytest.mark.slow
def test_moment_spread_agrees_with_the_marginals_along_an_axis(posterior):
    for number, track in enumerate(posterior.tracks()):
        for axis in range(3):
            mean, std = moment_along(posterior, number, np.eye(3)[axis])
            np.testing.assert_allclose(mean, track.moment_mean[axis])
            # Where few draws have it alive, the two average different ones.
            told = track.probability * track.prob_alive > 0.5
            np.testing.assert_allclose(std[told], track.moment_std[axis, told], rtol=0.15)


def test_moments_fade_where_the_track_is_hardly_alive(posterior):
    axes = viz.plot_moments(posterior)
    for number, (ax, track) in enumerate(zip(axes, posterior.tracks(), strict=True), start=1):
        assert ax.get_title().startswith(f"track {number}, p = {track.probability:.2f}\n(")
        outer, inner = meshes(ax)
        shown = np.where(track.prob_alive >= 0.02, track.prob_alive, 0.0)
        for mesh in (outer, inner):
            opacity = mesh.get_array().ravel()
            np.testing.assert_allclose(opacity / opacity.max(), shown / shown.max(), atol=1e-12)
            assert mesh.get_clip_path() is not None
        (line,) = [c for c in ax.collections if isinstance(c, LineCollection)]
        assert len(line.get_segments()) == np.sum((shown[1:] > 0) & (shown[:-1] > 0))
        np.testing.assert_allclose(line.get_colors()[:, 3].max(), shown.max())


def test_moments_mark_birth_and_death(posterior):
    axes = viz.plot_moments(posterior)
    for ax, track in zip(axes, posterior.tracks(), strict=True):
        births, deaths = life_of(posterior, track)
        born, died = ([x for x in ax.lines if x.get_marker() == m] for m in "^v")
        assert born[0].get_xdata()[0] == pytest.approx(births[1])
        if track.death_pmf[-1] < 0.5:
            assert died[0].get_xdata()[0] == pytest.approx(deaths[1])
        else:
            assert not died
        bars = [x.get_xdata() for x in ax.lines if x.get_linewidth() == 2]
        np.testing.assert_allclose(bars, [births[[0, 2]], deaths[[0, 2]]])


def test_moments_fill_given_axes_and_switch_off_the_rest(posterior):
    _, given = plt.subplots(2, 4)
    axes = viz.plot_moments(posterior, axes=given)
    assert [ax.axison for ax in axes] == [True] * 3 + [False] * 5
    assert viz.plot_moments(posterior, axes=given[0, 0]).shape == (1,)


# ---------------------------------------------------------------- the rest


def test_predictive_has_units(posterior):
    words = texts(viz.plot_predictive(posterior, n_times=2))
    for word in ("eeg", "µV", "data", "posterior mean", "residual", "predictive std", "ms"):
        assert word in words


def test_trace_draws_every_run_over_time(posterior):
    axes = viz.plot_trace(posterior)
    names = ("ess", "n_ancestors", "log_evidence_increment")
    for ax, name in zip(axes, names, strict=True):
        assert ax.get_xlabel() == "time (ms)"
        for line, values in zip(ax.lines, posterior.draws.trace[name], strict=True):
            np.testing.assert_allclose(line.get_ydata(), values)
            np.testing.assert_allclose(line.get_xdata(), 1e3 * posterior.problem.times)
    assert [ax.get_ylabel().split(" (")[0] for ax in axes] == [
        "effective sample size",
        "distinct ancestors",
        "log evidence increment",
    ]
    with pytest.raises(ValueError, match="three"):
        viz.plot_trace(posterior, axes=axes[:1])
    # Of a smoother, how often it left the filter's lines says more than how many those are.
    renewal = np.full((2, 100), 0.6)
    renewing = with_draws(posterior, trace=posterior.draws.trace | {"renewal": renewal})
    ax = viz.plot_trace(renewing)[1]
    assert ax.get_ylabel() == "share of pasts drawn afresh"
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], renewal)


def test_trace_of_a_method_without_particles_is_its_chains(posterior):
    chains = with_draws(posterior, method="particle_gibbs", trace={})
    axes = viz.plot_trace(chains)
    assert [ax.get_xlabel() for ax in axes] == ["draw"] * 3
    n_lives = chains.draws.is_new.sum(axis=(2, 3))
    np.testing.assert_array_equal([line.get_ydata() for line in axes[1].lines], n_lives)
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), 1e9 * chains.draws.moment_std[0])
    partly = with_draws(posterior, trace={"ess": posterior.draws.trace["ess"]})
    assert "particle_smoother does not trace this" in texts(viz.plot_trace(partly)[1].figure)


@pytest.mark.slow
def test_overview_says_what_it_is_worth(posterior):
    words = viz.plot_overview(posterior).get_suptitle()
    for word in ("particle_smoother", "2 runs", "status OK", "±", "births expected", "mL"):
        assert word in words
    assert "DO NOT TRUST" not in words and "up to each sample" not in words
    bad = with_draws(filtered(posterior), status=be.Status.RUNS_DISAGREE)
    bad = with_draws(bad, log_evidence=np.full(2, np.nan))
    words = viz.plot_overview(bad).get_suptitle()
    assert "DO NOT TRUST" in words and "n_particles" in words
    assert "up to each sample" in words and "no evidence from this method" in words


@pytest.fixture(scope="module")
def empty():
    return make_posterior((), n_draws=3, n_times=20)


@pytest.mark.parametrize("kind", ["overview", "predictive", "trace"])
def test_no_tracks_are_drawn_and_said(empty, kind):
    """The overview has the other four."""
    assert empty.tracks() == []
    figure = figure_of(getattr(viz, f"plot_{kind}")(empty))
    figure.canvas.draw()
    if kind == "overview":
        words = texts(figure)
        assert words.count("no track with probability of at least 0.05") == 2
        assert "no dipole" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lives", "shape"),
    [
        ((Life(5, 0, 1, 0),), {"n_times": 1}),
        ((Life(5, 10, 11, 0), Life(50, 3, 20, 0, 0.6)), {"n_times": 20, "n_runs": 1}),
        ((Life(5, 4, 12),), {"n_times": 20, "n_orient": 1}),
    ],
)
def test_edges_of_the_problem(lives, shape):
    """A single sample, a life of one sample, one orientation: each kind of figure is drawn."""
    found = make_posterior(lives, n_draws=10, **shape)
    with matplotlib.rc_context():
        before = dict(matplotlib.rcParams)
        for kind in KINDS:
            figure_of(getattr(viz, f"plot_{kind}")(found)).canvas.draw()
            plt.close("all")
        assert dict(matplotlib.rcParams) == before
    axes = viz.plot_moments(found)
    n_alone = sum(np.sum(track.prob_alive > 0) == 1 for track in found.tracks())
    assert sum(len(ax.containers) for ax in axes) == 2 * n_alone  # bars of 50 % and of 95 %


def test_a_dipole_that_walks_is_marked_where_it_is(posterior):
    track = posterior.tracks()[0]
    path = np.linspace(0.0, 0.05, 100)[:, None] * [1.0, 0.0, 0.5]
    path[60:] = np.nan
    walking = dataclasses.replace(track, path=path)
    marked = at_sample(walking, 30)
    np.testing.assert_allclose(marked.pos, path[30])
    assert marked.probability == pytest.approx(track.probability * track.prob_alive[30])
    np.testing.assert_allclose(marked.moment_mean[:, 0], track.moment_mean[:, 30])
    np.testing.assert_allclose(at_sample(walking, 70).pos, track.pos)


def test_figures_of_the_average_brain_average_or_take_a_time(posterior):
    values, label = values_at(posterior, None)
    np.testing.assert_allclose(values, posterior.intensity.mean(axis=0))
    assert "mean over the window" in label
    values, label = values_at(posterior, 0.1)
    np.testing.assert_allclose(values, posterior.intensity[30])
    assert "at 100 ms" in label
    assert "data so far" in values_at(filtered(posterior), 0.1)[1]
    with pytest.raises(ValueError, match="fsaverage"):
        viz.plot_cortex(posterior, head=None)
    with pytest.raises(ValueError, match="fsaverage"):
        viz.plot_glass_brain(posterior, head=None)
