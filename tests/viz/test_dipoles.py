"""Figures of dipole posteriors: types, labels, units, and the cases at the edge."""

import dataclasses

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import bayes_esi as be  # noqa: E402
from bayes_esi.inference.dipole_moves import MOVES  # noqa: E402
from bayes_esi.viz import dipoles as viz  # noqa: E402
from bayes_esi.viz.common import main_direction  # noqa: E402
from bayes_esi.viz.predictive import _peaks  # noqa: E402
from bayes_esi.viz.spread import field_law, moment_std_along  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")

OPTIONS = {"n_particles": 200, "n_runs": 2, "max_sweeps": 1, "throw": False, "progress": False}
KINDS = ("n_dipoles", "intensity", "moments", "predictive", "trace", "overview")
N_MAG, N_EEG = 12, 10


def make_problem(n_times=20, n_orient=3, with_normals=False, with_sensors=True, kinds=None):
    """Put two dipoles under sensors on a sphere of radius 0.1 m."""
    rng = np.random.default_rng(3)
    n_channels = N_MAG + N_EEG
    kinds = ["mag"] * N_MAG + ["eeg"] * N_EEG if kinds is None else kinds
    grid = np.arange(-0.04, 0.05, 0.02)
    source_pos = np.stack(np.meshgrid(grid, grid, grid[2:]), axis=-1).reshape(-1, 3)
    sensor_pos = rng.standard_normal((n_channels, 3))
    sensor_pos[:, 2] = np.abs(sensor_pos[:, 2])
    sensor_pos *= 0.1 / np.linalg.norm(sensor_pos, axis=1, keepdims=True)
    distance = np.linalg.norm(sensor_pos[:, None] - source_pos, axis=2)
    lead_field = (sensor_pos[:, None] - source_pos) / distance[:, :, None] ** 3
    # Volts per A·m of the order of EEG, tesla per A·m of the order of MEG.
    scale = np.array([1e-9 if kind in ("mag", "grad") else 1.0 for kind in kinds])
    lead_field = lead_field * scale[:, None, None]
    normals = None
    if n_orient == 1:
        direction = source_pos / np.linalg.norm(source_pos, axis=1, keepdims=True).clip(1e-9)
        direction[np.linalg.norm(direction, axis=1) == 0] = (0, 0, 1)
        lead_field = np.sum(lead_field * direction, axis=2, keepdims=True)
        normals = direction if with_normals else None
    times = np.linspace(0.05, 0.15, n_times) if n_times > 1 else np.array([0.1])
    course = np.stack([np.sin(30 * times), np.cos(30 * times)])
    moment = 2e-8 * course[:, None] * np.ones((2, n_orient, 1))
    clean = np.einsum("csd,sdt->ct", lead_field[:, [7, 50]], moment)
    std = 0.05 * np.array([np.abs(clean[[k == kind for k in kinds]]).max() for kind in kinds])
    return be.Problem.from_arrays(
        clean + std[:, None] * rng.standard_normal(clean.shape),
        lead_field,
        source_pos,
        np.diag(std**2),
        source_normals=normals,
        times=times,
        ch_types=kinds,
        sensor_pos=sensor_pos if with_sensors else None,
    )


@pytest.fixture(scope="module")
def posterior():
    return be.infer(be.StaticDipoles(max_dipoles=3), make_problem(), **OPTIONS)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def without_dipoles(posterior):
    draws = dataclasses.replace(
        posterior.draws, active=np.zeros_like(posterior.draws.active), trace={}
    )
    return dataclasses.replace(posterior, draws=draws)


def with_first_run(posterior):
    draws = posterior.draws
    cut = {
        field.name: getattr(draws, field.name)[:1]
        for field in dataclasses.fields(draws)
        if field.name not in ("trace", "n_dipoles_pmf", "intensity")
    }
    trace = {name: values[:1] for name, values in draws.trace.items()}
    return dataclasses.replace(posterior, draws=dataclasses.replace(draws, trace=trace, **cut))


def figure_of(drawn):
    return drawn if isinstance(drawn, Figure) else np.ravel(drawn)[0].figure


def draw(posterior, kinds=("predictive", "trace", "overview")):
    """Draw the figures that hold all others: the overview has number, intensity and moments."""
    for kind in kinds:
        drawn = getattr(viz, f"plot_{kind}")(posterior)
        figure_of(drawn).canvas.draw()
        plt.close("all")


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_types(posterior):
    assert isinstance(viz.plot_n_dipoles(posterior), Axes)
    for kind in ("intensity", "moments", "trace"):
        axes = getattr(viz, f"plot_{kind}")(posterior)
        assert isinstance(axes, np.ndarray)
        assert all(isinstance(ax, Axes) for ax in axes)
    for kind in ("predictive", "overview"):
        assert isinstance(getattr(viz, f"plot_{kind}")(posterior), Figure)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_plots_itself(posterior, kind):
    with matplotlib.rc_context():
        before = dict(matplotlib.rcParams)
        figure_of(posterior.plot(kind)).canvas.draw()
        assert dict(matplotlib.rcParams) == before


def test_number_has_a_bar_for_each_number_and_a_tick_for_each_run(posterior):
    _, ax = plt.subplots()
    assert viz.plot_n_dipoles(posterior, ax=ax) is ax
    n_numbers = posterior.model.max_dipoles + 1
    assert len(ax.patches) == n_numbers
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], posterior.n_dipoles_pmf)
    runs, prior = ax.lines
    assert len(runs.get_xdata()) == posterior.n_runs * n_numbers
    pooled = posterior.run_weights @ runs.get_ydata().reshape(posterior.n_runs, n_numbers)
    np.testing.assert_allclose(pooled, posterior.n_dipoles_pmf, atol=1e-12)
    rate = 0.25
    poisson = np.array([1, rate, rate**2 / 2, rate**3 / 6])
    np.testing.assert_allclose(prior.get_ydata(), poisson / poisson.sum())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("number of dipoles", "probability")


def test_number_prior_knows_how_many_places_there_are(posterior):
    prior = np.zeros(posterior.problem.n_sources)
    prior[:2] = 1.0
    model = dataclasses.replace(posterior.model, location_prior=prior)
    ax = viz.plot_n_dipoles(dataclasses.replace(posterior, model=model))
    assert ax.lines[-1].get_ydata()[3] == 0


def test_exact_number_has_no_run_ticks(posterior):
    pmf = np.array([0.0, 0.2, 0.8, 0.0])
    draws = dataclasses.replace(posterior.draws, n_dipoles_pmf=pmf)
    ax = viz.plot_n_dipoles(dataclasses.replace(posterior, draws=draws))
    assert len(ax.lines) == 1


def test_intensity_is_in_millimetres_with_equal_aspect(posterior):
    _, given = plt.subplots(1, 3)
    axes = viz.plot_intensity(posterior, axes=given)
    assert list(axes) == list(given)
    for ax, names in zip(axes, ("yz", "xz", "xy"), strict=True):
        assert ax.get_aspect() == 1
        assert ax.get_xlabel().startswith(names[0])
        assert ax.get_ylabel().startswith(names[1])
        assert "(mm)" in ax.get_xlabel() and "(mm)" in ax.get_ylabel()
        assert any(c.get_cmap().name == "Reds" for c in ax.collections)
    assert "expected number of dipoles" in texts(axes[0].figure)
    n_marked = sum(d.probability >= 0.05 for d in posterior.dipoles())
    assert n_marked >= 1
    assert len(axes[0].patches) == n_marked  # ellipses
    with pytest.raises(ValueError, match="three"):
        viz.plot_intensity(posterior, axes=given[:2])


def test_moments_are_in_nanoampere_metres_and_milliseconds(posterior):
    axes = viz.plot_moments(posterior)
    assert axes[0].get_xlabel() == "time (ms)"
    assert axes[0].get_ylabel() == "moment (nA·m)"
    dipole = posterior.dipoles()[0]
    assert axes[0].get_title().startswith(f"dipole 1, p = {dipole.probability:.2f}")
    course = axes[0].lines[-1]
    np.testing.assert_allclose(course.get_xdata(), 1e3 * posterior.problem.times)
    expected = 1e9 * main_direction(dipole.moment_mean) @ dipole.moment_mean
    np.testing.assert_allclose(course.get_ydata(), expected)
    assert np.max(course.get_ydata()) == np.max(np.abs(course.get_ydata()))
    assert len(axes[0].collections) == 2  # bands


def test_moments_fill_given_axes_and_switch_off_the_rest(posterior):
    _, given = plt.subplots(2, 4)
    axes = viz.plot_moments(posterior, axes=given)
    n_dipoles = sum(d.probability >= 0.05 for d in posterior.dipoles())
    assert [ax.axison for ax in axes] == [i < n_dipoles for i in range(8)]
    _, single = plt.subplots()
    assert viz.plot_moments(posterior, axes=single).shape == (1,)


def test_moment_spread_agrees_with_the_marginals_along_an_axis(posterior):
    dipole = posterior.dipoles()[0]
    for axis in range(3):
        std = moment_std_along(posterior, 0, np.eye(3)[axis])
        np.testing.assert_allclose(std, dipole.moment_std[axis], rtol=0.15)


def test_predictive_spread_covers_the_data(posterior):
    problem = posterior.problem
    mean, std = field_law(posterior)
    data = np.linalg.pinv(problem.whitener) @ problem.data
    score = (data - mean) / std
    assert mean.shape == std.shape == (problem.n_channels, problem.n_times)
    assert 0.7 < np.sqrt(np.mean(score**2)) < 1.3
    noise = np.linalg.pinv(problem.whitener)
    noise = np.sqrt(np.sum(noise**2, axis=1)) * posterior.draws.noise_std.min()
    assert np.all(std > noise[:, None])


def test_predictive_maps_have_units(posterior):
    figure = viz.plot_predictive(posterior, n_times=2)
    words = texts(figure)
    for word in ("mag", "eeg", "fT", "µV", "data", "posterior mean", "residual", "ms"):
        assert word in words
    # Two blocks of 3 rows and 2 columns, with two colour bars each.
    assert len(figure.axes) == 2 * (6 + 2)
    with pytest.raises(ValueError, match="n_times"):
        viz.plot_predictive(posterior, n_times=0)


@pytest.mark.parametrize(
    "kinds, unit", [("grad", "fT/cm"), ("misc", "units of the data"), ("seeg", "µV")]
)
def test_predictive_of_other_channels(posterior, kinds, unit):
    problem = dataclasses.replace(
        posterior.problem, ch_types=(kinds,) * posterior.problem.n_channels
    )
    figure = viz.plot_predictive(dataclasses.replace(posterior, problem=problem))
    figure.canvas.draw()
    assert unit in texts(figure)
    has_maps = kinds == "grad"
    assert ("channel" in texts(figure)) != has_maps


def test_gradiometers_are_left_out_beside_magnetometers(posterior):
    kinds = ("mag",) * N_MAG + ("grad",) * N_EEG
    problem = dataclasses.replace(posterior.problem, ch_types=kinds)
    words = texts(viz.plot_predictive(dataclasses.replace(posterior, problem=problem)))
    assert "mag" in words and "grad" not in words


def test_predictive_without_sensor_positions(posterior):
    problem = dataclasses.replace(posterior.problem, sensor_pos=None)
    changed = dataclasses.replace(posterior, problem=problem)
    figure = viz.plot_predictive(changed)
    figure.canvas.draw()
    assert "time (ms)" in texts(figure)


def test_peaks():
    power = np.zeros((4, 30))
    power[:, 5], power[:, 20], power[:, 21] = 2.0, 3.0, 2.9
    assert _peaks(power, 2).tolist() == [5, 20]
    assert _peaks(np.ones((4, 1)), 3).tolist() == [0]
    assert _peaks(np.arange(8.0)[None], 1).tolist() == [7]
    assert len(_peaks(np.ones((3, 9)), 3)) == 1


def test_trace_draws_every_run(posterior):
    axes = viz.plot_trace(posterior)
    assert [len(ax.lines) for ax in axes] == [2, 2, 2 * 5]
    assert all(ax.get_xlabel() == "step" for ax in axes)
    assert axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="three"):
        viz.plot_trace(posterior, axes=axes[:1])


@pytest.mark.parametrize(
    "trace",
    [
        {},
        {"n_sets": np.array([4.0])},
        {"ess": np.zeros((2, 0)), "acceptance": np.full((2, 3, 5), np.nan)},
        {"acceptance": np.full((2, 4, 3), 0.5)},
    ],
)
def test_trace_of_a_method_that_says_little(posterior, trace):
    draws = dataclasses.replace(posterior.draws, trace=trace)
    changed = dataclasses.replace(posterior, draws=draws, method="enumerate")
    axes = viz.plot_trace(changed)
    axes[0].figure.canvas.draw()
    assert "enumerate does not trace this" in texts(axes[0].figure)
    assert axes[0].get_ylabel() == "inverse temperature"


def test_trace_of_a_ladder_of_temperatures(posterior):
    trace = {
        "inverse_temperature": np.array([[0.0, 0.1, 1.0]] * 2),
        "swap_rate": np.full((2, 2), 0.3),
        "acceptance": np.full((2, 5), 0.2),
    }
    draws = dataclasses.replace(posterior.draws, trace=trace)
    axes = viz.plot_trace(dataclasses.replace(posterior, draws=draws, method="reversible_jump"))
    axes[0].figure.canvas.draw()
    assert axes[1].get_ylabel() == "share of swaps accepted"
    assert [tick.get_text() for tick in axes[2].get_xticklabels()] == list(MOVES)


def test_overview_says_what_it_is_worth(posterior):
    ok = viz.plot_overview(dataclasses.replace(posterior, status=be.Status.OK))
    words = ok.get_suptitle()
    for word in ("smc", "2 runs", "status OK", "±", "mL", "residual autocorrelation"):
        assert word in words
    assert "DO NOT TRUST" not in words
    bad = viz.plot_overview(dataclasses.replace(posterior, status=be.Status.RUNS_DISAGREE))
    assert "DO NOT TRUST" in bad.get_suptitle()
    assert "n_particles" in bad.get_suptitle()


def test_no_dipoles(posterior):
    empty = without_dipoles(posterior)
    draw(empty)
    assert "no dipole" in texts(viz.plot_moments(empty)[0].figure)


def test_single_run(posterior):
    single = with_first_run(posterior)
    draw(single)
    assert "single run" in texts(viz.plot_overview(single))
    assert "single run" in texts(viz.plot_n_dipoles(single).figure)


def test_direction_of_no_moment():
    """A mean moment of zero has no direction; nothing may divide by it."""
    assert np.linalg.norm(main_direction(np.zeros((3, 4)))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "shape",
    [
        {"n_times": 1},
        {"n_orient": 1, "with_normals": True},
        {"n_orient": 1, "with_normals": False},
        {"n_times": 1, "n_orient": 1, "with_sensors": False},
        {"kinds": ["eeg"] * 3 + ["misc"] * 19, "n_times": 2},
    ],
)
def test_edges_of_the_problem(posterior, shape):
    """The same draws, read with another problem on the same grid."""
    changed = dataclasses.replace(posterior, problem=make_problem(**shape))
    draw(changed, ("predictive", "overview"))
