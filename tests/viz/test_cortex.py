"""Values on the cortex and in the glass brain: the right places, colours, labels and limits."""

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import TriMesh  # noqa: E402

from bayes_esi.viz.cortex import plot_cortex  # noqa: E402
from bayes_esi.viz.glass_brain import plot_glass_brain  # noqa: E402

LEFT_LATERAL, LEFT_MEDIAL, RIGHT_MEDIAL, RIGHT_LATERAL = range(4)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def spot(head, keep):
    """One at the sources that `keep` (a function of MNI positions in m) chooses."""
    return keep(head.to_mni(head.source_pos)).astype(float)


def meshes(axes):
    found = [[c for c in ax.collections if isinstance(c, TriMesh)] for ax in axes]
    assert [len(each) for each in found] == [1] * len(axes)
    return [each[0] for each in found]


def redness(mesh):
    """Of the vertices that are painted."""
    used = np.unique(mesh._triangulation.triangles)
    colours = mesh.get_facecolor()[used]
    position = np.column_stack([mesh._triangulation.x, mesh._triangulation.y])[used]
    return colours[:, 0] - colours[:, 2], position


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


@pytest.mark.parametrize("surface", ["inflated", "pial"])
def test_four_views(head, surface):
    axes = plot_cortex(spot(head, lambda p: p[:, 2] > 0.05), head, surface=surface)
    assert axes.shape == (4,) and all(isinstance(ax, Axes) for ax in axes)
    axes[0].figure.canvas.draw()
    words = texts(axes[0].figure)
    for word in ("left, lateral", "right, medial", "expected number of dipoles"):
        assert word in words


def test_what_is_on_the_left_is_drawn_on_the_left(head):
    axes = plot_cortex(spot(head, lambda p: p[:, 0] < -0.045), head)
    red = [redness(mesh)[0].max() for mesh in meshes(axes)]
    assert red[LEFT_LATERAL] > 0.3
    # Grey is grey on the other hemisphere.
    assert red[RIGHT_LATERAL] < 0.01 and red[RIGHT_MEDIAL] < 0.01


def test_a_single_source_is_a_spot_of_its_own_colour(head):
    values = np.zeros(head.n_sources)
    place = np.argmin(head.to_mni(head.source_pos)[:, 0])  # the far left
    values[head.source_faces[np.any(head.source_faces == place, axis=1)].ravel()] += 0.1
    values[place] = 1.0
    mesh = meshes(plot_cortex(values, head))[LEFT_LATERAL]
    colours, fine = mesh.get_facecolor(), np.split(head.cortex_faces, 2)[0]
    around = np.unique(fine[np.any(fine == place, axis=1)])
    hue = colours[around, :3] / colours[around, :1]  # whatever the light
    top = np.array(plt.get_cmap("Reds")(1.0)[:3])
    np.testing.assert_allclose(hue, np.tile(top / top[0], (len(around), 1)), atol=1e-6)


def test_front_and_top(head):
    """The viewer of the left side has the front on the left; of the right side, on the right."""
    axes = plot_cortex(spot(head, lambda p: p[:, 1] > 0.045), head)
    for view, sign in (
        (LEFT_LATERAL, -1),
        (LEFT_MEDIAL, 1),
        (RIGHT_MEDIAL, -1),
        (RIGHT_LATERAL, 1),
    ):
        red, pos = redness(meshes(axes)[view])
        middle = 0.5 * (pos[:, 0].max() + pos[:, 0].min())
        assert np.all(sign * (pos[red > 0.3, 0] - middle) > 0)
    axes = plot_cortex(spot(head, lambda p: p[:, 2] > 0.06), head)
    red, pos = redness(meshes(axes)[LEFT_LATERAL])
    assert pos[red > 0.3, 1].min() > np.median(pos[:, 1])


def test_magnitudes_in_reds_and_signs_around_zero(head):
    values = np.linspace(0, 0.4, head.n_sources)
    for signed, cmap, low in ((values, "Reds", 0.0), (values - 0.2, "RdBu_r", -0.2)):
        figure = plot_cortex(signed, head, label="what (unit)")[0].figure
        scale = figure.axes[-1]._colorbar.mappable
        assert scale.cmap.name == cmap
        assert scale.norm.vmin == pytest.approx(low)
        assert scale.norm.vmax == pytest.approx(np.abs(signed).max())
        assert "what (unit)" in texts(figure)


def test_nothing_to_show(head):
    axes = plot_cortex(np.zeros(head.n_sources), head, vmax=2.0)
    assert axes[0].figure.axes[-1]._colorbar.mappable.norm.vmax == 2.0
    assert max(redness(mesh)[0].max() for mesh in meshes(axes)) < 1e-6


def test_given_axes_are_used(head):
    _, given = plt.subplots(2, 2)
    axes = plot_cortex(np.ones(head.n_sources), head, axes=given)
    assert list(axes) == list(given.ravel())
    with pytest.raises(ValueError, match="four Axes"):
        plot_cortex(np.ones(head.n_sources), head, axes=given[0])


def test_bad_values(head):
    with pytest.raises(ValueError, match="One for each source"):
        plot_cortex(np.ones(7), head)
    with pytest.raises(ValueError, match="NaN"):
        plot_cortex(np.full(head.n_sources, np.nan), head)
    with pytest.raises(ValueError, match="surface must be one of"):
        plot_cortex(np.ones(head.n_sources), head, surface="mid")


def markers(figure):
    return [c for ax in figure.axes for c in ax.collections if len(c.get_offsets()) > 1]


def test_glass_brain(head):
    values = spot(head, lambda p: (p[:, 0] > 0.03) & (p[:, 2] > 0.03))
    ax = plot_glass_brain(values, head.to_mni(head.source_pos))
    assert isinstance(ax, Axes)
    ax.figure.canvas.draw()
    assert "expected number of dipoles" in texts(ax.figure)
    # Seen from the left: nothing. From the right, back and top: all.
    drawn = [len(each.get_offsets()) for each in markers(ax.figure)]
    assert drawn == [int(values.sum())] * 3


def test_glass_brain_takes_a_place_in_a_figure(head):
    figure, given = plt.subplots(1, 2, layout="constrained")
    values = np.zeros(head.n_sources)
    values[[5, 3000]] = [-1.0, 2.0]
    ax = plot_glass_brain(
        values, head.to_mni(head.source_pos), ax=given[1], views="ortho", label="what (unit)"
    )
    figure.canvas.draw()
    assert ax is given[1] and "what (unit)" in texts(figure)
    assert [len(each.get_offsets()) for each in markers(figure)] == [2, 2, 2]
    # The largest lies on top.
    assert np.all(markers(figure)[0].get_facecolor()[-1][:1] < 0.6)
    left = given[1].get_position().x0
    assert all(a.get_position().x0 > left - 0.02 for a in figure.axes if a is not given[0])


def test_glass_brain_refuses_what_it_cannot_place(head):
    mni = head.to_mni(head.source_pos)
    with pytest.raises(ValueError, match="mm"):
        plot_glass_brain(np.ones(len(mni)), 1e3 * mni)
    with pytest.raises(ValueError, match="One for each place"):
        plot_glass_brain(np.ones(3), mni)
    with pytest.raises(ValueError, match="views must be one of"):
        plot_glass_brain(np.ones(len(mni)), mni, views="front")


def test_glass_brain_without_values_to_show(head):
    mni = head.to_mni(head.source_pos)
    assert not markers(plot_glass_brain(np.zeros(len(mni)), mni).figure)
