"""Figures of distributed sources: what is drawn, in which units, and the cases at the edge."""

import dataclasses

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.colors import CenteredNorm  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from scipy.stats import norm  # noqa: E402

import bayes_esi as be  # noqa: E402
from bayes_esi.inference.regularisation import RegularisationCurve  # noqa: E402
from bayes_esi.viz import source_brain  # noqa: E402
from bayes_esi.viz import sources as viz  # noqa: E402
from bayes_esi.viz.quantities import at_sample, sample_of  # noqa: E402

TRUE = 40  # source that the data come from
N_CHANNELS = 16


def make_problem(n_times=12, n_orient=3):
    """One source on a grid under sensors on a sphere of radius 0.1 m."""
    rng = np.random.default_rng(0)
    grid = np.arange(-0.04, 0.05, 0.02)
    source_pos = np.stack(np.meshgrid(grid, grid, grid[2:]), axis=-1).reshape(-1, 3)
    sensor_pos = rng.standard_normal((N_CHANNELS, 3))
    sensor_pos[:, 2] = np.abs(sensor_pos[:, 2])
    sensor_pos *= 0.1 / np.linalg.norm(sensor_pos, axis=1, keepdims=True)
    apart = sensor_pos[:, None] - source_pos
    lead_field = apart / np.linalg.norm(apart, axis=2, keepdims=True) ** 3
    lead_field = lead_field[:, :, :n_orient]
    times = np.linspace(0.05, 0.15, n_times) if n_times > 1 else np.array([0.1])
    moment = 2e-8 * np.sin(10 * np.pi * (times - 0.05))
    clean = lead_field[:, TRUE, :1] * moment
    std = 0.1 * np.abs(clean).max()
    return be.Problem.from_arrays(
        clean + std * rng.standard_normal(clean.shape),
        lead_field,
        source_pos,
        std**2 * np.eye(N_CHANNELS),
        times=times,
        ch_types=["eeg"] * N_CHANNELS,
        sensor_pos=sensor_pos,
    )


def infer(model, problem, **options):
    return be.infer(model, problem, progress=False, throw=False, **options)


@pytest.fixture(scope="module")
def free():
    return infer(be.GaussianSources(), make_problem())


@pytest.fixture(scope="module")
def fixed():
    return infer(be.GaussianSources(), make_problem(n_orient=1))


@pytest.fixture(scope="module")
def dynamic():
    missing = np.zeros(12, bool)
    missing[4:6] = True
    return infer(be.AutoregressiveSources(), make_problem(), missing=missing)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def edges(band):
    """Lower and upper edge of what `fill_between` drew."""
    vertices = band.get_paths()[0].vertices
    x = np.unique(vertices[:, 0])
    return np.array([[f(vertices[vertices[:, 0] == v, 1]) for v in x] for f in (np.min, np.max)])


def test_bands_are_quantiles_of_the_marginals(free):
    axes = viz.plot_courses(free, sources=[TRUE, 3], along="axes")
    assert len(axes) == 2 and "x, right" in texts(axes[0].figure)
    for ax, source in zip(axes, (TRUE, 3), strict=True):
        for axis in range(3):
            wide, narrow = ax.collections[2 * axis : 2 * axis + 2]
            mean, std = 1e9 * free.mean[source, axis], 1e9 * free.std[source, axis]
            # Exact but for the rounding of the quantiles as written here.
            for band, width in ((wide, 1.959964), (narrow, 0.674490)):
                drawn = edges(band)
                np.testing.assert_allclose(drawn, [mean - width * std, mean + width * std], 1e-5)
            courses = [line for line in ax.lines if len(line.get_xdata()) == len(mean)]
            np.testing.assert_allclose(courses[axis].get_ydata(), mean)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("time (ms)", "moment (nA·m)")


def test_courses_follow_the_main_direction(free):
    axes = viz.plot_courses(free)
    assert len(axes) == min(len(free.peaks), 4)
    course = axes[0].lines[-1]
    np.testing.assert_allclose(course.get_xdata(), 1e3 * free.problem.times)
    assert np.max(course.get_ydata()) == np.max(np.abs(course.get_ydata()))
    x, y, z = 1e3 * free.problem.source_pos[free.peaks[0]]
    assert axes[0].get_title() == f"1: ({x:.0f}, {y:.0f}, {z:.0f}) mm"
    _, given = plt.subplots(1, 3)
    assert [ax.axison for ax in viz.plot_courses(free, axes=given, sources=[5])] == [1, 0, 0]
    for bad in ([-1], [free.problem.n_sources], [0.5], []):
        with pytest.raises(ValueError, match="sources"):
            viz.plot_courses(free, sources=bad)
    with pytest.raises(ValueError, match="along"):
        viz.plot_courses(free, along="normals")


def test_courses_of_fixed_orientation_keep_their_sign(fixed):
    negative = int(np.argmin(fixed.mean[:, 0].min(axis=1)))
    ax = viz.plot_courses(fixed, sources=[negative])[0]
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), 1e9 * fixed.mean[negative, 0])
    wide = edges(ax.collections[0])
    np.testing.assert_allclose(wide[1] - wide[0], 2 * 1.959964e9 * fixed.std[negative, 0], 1e-5)


def test_missing_samples_are_shaded(dynamic):
    ax = viz.plot_courses(dynamic, sources=[TRUE])[0]
    (span,) = [patch for patch in ax.patches if patch.get_facecolor()[0] == pytest.approx(0.93)]
    times = 1e3 * dynamic.problem.times
    half = (times[1] - times[0]) / 2
    ends = span.get_x(), span.get_x() + span.get_width()
    np.testing.assert_allclose(ends, [times[4] - half, times[5] + half])


def test_map_has_the_deviation_below_the_mean(free):
    axes = viz.plot_map(free, sources=[TRUE])
    assert len(axes) == 6
    sample = sample_of(free)
    mean = 1e9 * np.linalg.norm(free.mean[:, :, sample], axis=1)
    std = 1e9 * np.linalg.norm(free.std[:, :, sample], axis=1)
    for ax, values in ((axes[0], mean), (axes[3], std)):
        discs = ax.collections[-1]
        assert discs.get_cmap().name == "Reds" and ax.get_aspect() == 1
        np.testing.assert_allclose(np.sort(discs.get_array()), np.sort(values))
    assert axes[0].collections[-1].norm.vmin == 0
    assert axes[3].collections[-1].norm.vmin == pytest.approx(std.min())
    words = texts(axes[0].figure)
    at = f"{1e3 * free.problem.times[sample]:.0f} ms"
    assert f"posterior mean\nat {at} (nA·m)" in words and f"posterior std\nat {at} (nA·m)" in words
    assert axes[0].get_xlabel() == "y, front (mm)" and "1" in [t.get_text() for t in axes[0].texts]
    np.testing.assert_allclose(
        axes[0].lines[0].get_xydata()[0], 1e3 * free.problem.source_pos[TRUE, 1:]
    )


def test_map_of_signed_values_is_centred(fixed):
    axes = viz.plot_map(fixed, time=0.1)
    discs = axes[0].collections[-1]
    assert discs.get_cmap().name == "RdBu_r" and isinstance(discs.norm, CenteredNorm)
    assert discs.norm.vcenter == 0
    assert axes[3].collections[-1].get_cmap().name == "Reds"


def test_what_a_map_may_show(free, fixed):
    for posterior in (free, fixed):
        mean, _ = at_sample(posterior, "mean", 5)
        std, _ = at_sample(posterior, "std", 5)
        ratio, label = at_sample(posterior, "ratio", 5)
        np.testing.assert_allclose(ratio, mean / std)
        assert "mean / std" in label and "(" not in label
        dspm, label = at_sample(posterior, "dSPM", 5)
        np.testing.assert_allclose(dspm, posterior.statistic("dSPM")[:, 5])
        assert label.startswith("dSPM")
    assert len(viz.plot_map(free, quantity="ratio")) == 3
    times = free.problem.times
    assert sample_of(free, times[3]) == 3
    strongest = np.linalg.norm(free.mean[free.peaks[0]], axis=0)
    assert sample_of(free) == np.argmax(strongest)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"quantity": "power"}, "quantity"),
        ({"time": 100.0}, "time must lie between 0.05 and 0.15 s"),
        ({"time": float("nan")}, "time"),
        ({"axes": [None] * 3}, "six"),
    ],
)
def test_map_refuses(free, options, named):
    with pytest.raises(ValueError, match=named):
        viz.plot_map(free, **options)


def test_scales_are_lognormal_and_in_nanoampere_metres(free):
    (ax,) = viz.plot_hyper(free)
    assert ax.get_xlabel() == "source std (nA·m)"
    density = next(line for line in ax.lines if line.get_label().startswith("posterior"))
    x, y = density.get_xydata().T
    # The range shown, four deviations to each side, holds all but 6e-5.
    assert np.trapezoid(y, x) == pytest.approx(1, abs=2e-4)
    centre, std = 1e9 * float(free.hyper["source_std"]), float(free.hyper_std["source_std"])
    bar = next(line for line in ax.lines if line.get_label() == "95 %")
    expected = centre * np.exp(norm.ppf([0.025, 0.975]) * std)
    np.testing.assert_allclose(bar.get_xdata(), expected)
    # A log-uniform law over four decades.
    prior = next(line for line in ax.lines if line.get_label() == "prior")
    np.testing.assert_allclose(prior.get_ydata(), 1 / (prior.get_xdata() * np.log(1e4)), rtol=1e-6)


def test_hyper_of_draws_and_of_nothing_unknown(free):
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(np.log(3e-10), 0.1, (2, 400)))
    mean = {"source_std": values.mean()}
    drawn = dataclasses.replace(
        free,
        draws={"source_std": values},
        hyper=free.hyper | mean,
        hyper_std={"source_std": values.std()},
        method="nuts",
    )
    (ax,) = viz.plot_hyper(drawn)
    assert sum(p.get_width() * p.get_height() for p in ax.patches) == pytest.approx(1)
    bar = next(line for line in ax.lines if line.get_label() == "95 %")
    np.testing.assert_allclose(bar.get_xdata(), 1e9 * np.quantile(values, [0.025, 0.975]))
    known = infer(be.GaussianSources(source_std=3e-10), free.problem)
    assert "was given" in texts(viz.plot_hyper(known)[0].figure)


def test_hyper_of_a_law_in_time_has_a_panel_each(dynamic):
    axes = viz.plot_hyper(dynamic)
    assert {ax.get_xlabel() for ax in axes} == {"source std (nA·m)", "time scale (ms)"}
    assert any("coefficient a = " in ax.get_title() for ax in axes)


def test_regularisation_marks_the_choice_and_what_mne_takes(free, dynamic):
    for posterior in (free, dynamic):
        ax = viz.plot_regularisation(posterior)
        curve, chosen, default = ax.lines
        assert curve.get_ydata().max() == 0 and ax.get_xscale() == "log"
        assert "nats" in ax.get_ylabel() and "SNR" in ax.get_xlabel()
        assert chosen.get_xdata()[0] == pytest.approx(posterior.lambda2)
        # With several unknowns the prior of the others moves the joint peak by parts of a nat.
        assert -0.2 < chosen.get_ydata()[0] <= 0
        assert default.get_xdata()[0] == pytest.approx(1 / 9)
        (shaded,) = ax.patches
        low, high = shaded.get_x(), shaded.get_x() + shaded.get_width()
        assert low < posterior.lambda2 < high
    std = float(free.hyper_std["source_std"])
    ax = viz.plot_regularisation(free)
    width = np.log1p(ax.patches[0].get_width() / ax.patches[0].get_x())
    # The Gaussian approximation of the same posterior; lambda2 goes with the squared scale.
    assert width == pytest.approx(2 * 2 * 1.96 * std, rel=0.05)


def test_regularisation_by_another_criterion(free):
    lambda2 = np.geomspace(1e-4, 1e4, 41)
    curve = RegularisationCurve("gcv", lambda2, np.log(lambda2 / free.lambda2) ** 2, free.lambda2)
    ax = viz.plot_regularisation(dataclasses.replace(free, curve=curve, hyper_std={}))
    assert ax.get_ylabel() == "generalised cross-validation" and not ax.patches
    assert "no uncertainty" in texts(ax.figure)
    assert ax.lines[1].get_ydata()[0] == pytest.approx(0, abs=0.1)


def test_resolution(free):
    axes = viz.plot_resolution(free, sources=[TRUE, 0])
    assert [ax.axison for ax in axes] == [True, True, False, True, True, True]
    metrics = free.resolution().metrics()
    for ax, column in zip(axes[4:], ("peak_error_mm", "spatial_deviation_mm"), strict=True):
        assert "(mm)" in ax.get_xlabel() and "(mm)" in ax.get_ylabel()
        np.testing.assert_allclose(ax.lines[0].get_ydata(), metrics[column])
    np.testing.assert_allclose(
        axes[0].lines[0].get_xydata()[0], 1e3 * free.problem.source_pos[TRUE, :2]
    )
    spread = axes[3].lines[0].get_ydata()
    expected = free.resolution().point_spread(TRUE)
    np.testing.assert_allclose(spread, expected / expected.max())


def test_predictive(free):
    words = texts(viz.plot_predictive(free, n_times=1))
    for word in ("eeg", "µV", "data", "posterior mean", "residual", "predictive std"):
        assert word in words


def test_overview_says_what_it_is_worth(dynamic):
    figure = viz.plot_overview(dataclasses.replace(dynamic, status=be.Status.SCALE_AT_BOUND))
    heading = figure.get_suptitle()
    for word in ("DO NOT TRUST", "AutoregressiveSources", "nats", "SNR", "autocorrelation"):
        assert word in heading
    assert "residual expected (95 %)" in texts(figure)
    assert len(figure.axes) == 3 + 3 + 2 + 4 + 2  # views, curves, courses and two colour bars


def test_a_single_sample_of_fixed_orientation(fixed):
    single = infer(be.GaussianSources(), make_problem(n_times=1, n_orient=1))
    before = dict(matplotlib.rcParams)
    for kind in ("overview", "predictive"):  # what depends on time
        drawn = single.plot(kind)
        figure = drawn if isinstance(drawn, Figure) else np.ravel(drawn)[0].figure
        figure.canvas.draw()
        plt.close("all")
    assert dict(matplotlib.rcParams) == before
    (ax,) = viz.plot_courses(single, sources=[TRUE])
    _, std = single.answers.along(np.array([TRUE]), np.ones((1, 1)))
    bars = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(np.diff(bars), 2 * 1.959964e9 * std[0], 1e-5)


def test_brain_figures_show_mean_and_deviation(free, monkeypatch):
    drawn = []

    def record(values, where, *, label, vmin, **_):
        drawn.append((values, label, vmin))

    monkeypatch.setattr(source_brain, "draw_cortex", record)
    monkeypatch.setattr(source_brain, "draw_glass_brain", record)

    class Head:
        source_pos = free.problem.source_pos + 1e-4
        n_sources = len(source_pos)
        hemisphere = (source_pos[:, 0] > 0.01).astype(int)

        def to_mni(self, pos):
            return pos

    block = Head.hemisphere.astype(np.int32)
    parts = {"source_block": block, "block_kinds": ("lh", "rh"), "subject": "fsaverage"}
    problem = dataclasses.replace(free.problem, **parts)
    average = dataclasses.replace(free, problem=problem)
    assert len(viz.plot_cortex(average, head=Head())) == 8
    assert len(viz.plot_glass_brain(average, head=Head())) == 2
    mean, std = (at_sample(free, name, sample_of(free))[0] for name in ("mean", "std"))
    for values, label, low in drawn[::2]:
        np.testing.assert_allclose(values, mean)
        assert label.startswith("posterior mean") and low == 0
    for values, label, low in drawn[1::2]:
        np.testing.assert_allclose(values, std)
        assert label.startswith("posterior std") and low == pytest.approx(std.min())
    with pytest.raises(ValueError, match="fsaverage.*'map'"):
        viz.plot_cortex(free, head=Head())
