"""Figures draw what they are given, also where there is nothing to draw, and name the kind of their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from cryosentinel import colours  # noqa: E402
from cryosentinel.errors import InputError  # noqa: E402
from cryosentinel.evaluation import plots  # noqa: E402
from cryosentinel.evaluation.bootstrap import Estimate, estimate_by  # noqa: E402
from cryosentinel.evaluation.cover import cover_chip  # noqa: E402
from cryosentinel.evaluation.metrics import sweep  # noqa: E402
from cryosentinel.evaluation.scores import BINS  # noqa: E402


@pytest.fixture(autouse=True)
def close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def table(lake: int = 50, n: int = 6) -> pd.DataFrame:
    y, b = np.zeros((n, BINS), np.int64), np.zeros((n, BINS), np.int64)
    y[:, 150], y[:, 20], b[:, 160], b[:, 5] = lake, lake // 5, lake // 6, 900
    return pd.DataFrame(
        {"chip_id": [f"c{i}" for i in range(n)], "region": ["ile_alatau", "karakoram"] * (n // 2), "year": 2022,
         "lat": 43.0, "lon": 77.0, "block": [f"0|{i}" for i in range(n)], "n_valid": y.sum(1) + b.sum(1),
         "lake": list(y), "background": list(b)}
    )  # fmt: skip


def texts(figure) -> str:
    found = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
    figure.canvas.draw()  # a layout that cannot be made warns here
    return " | ".join(found)


def test_the_sweep_draws_the_curve_and_the_published_points():
    swept = sweep(table())
    figure = plots.threshold_sweep({"test, label": swept}, "simulated")
    line = figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), swept["iou"])
    assert "simulated" in texts(figure) and "published, other data" in texts(figure)
    assert "published" not in texts(plots.threshold_sweep({"a": swept}, "real", published=False))


@pytest.mark.parametrize("lake", [50, 0])
def test_regions_distribution_and_reliability_also_without_lakes(lake):
    one = table(lake)
    for figure in (
        plots.region_bars({"label": estimate_by(one, "region")}, "simulated"),
        plots.chip_iou_distribution({"label": one}, 0.5, "simulated"),
        plots.reliability({"label": one}, "simulated"),
        plots.threshold_sweep({"label": sweep(one)}, "simulated"),
    ):
        assert "simulated" in texts(figure)


def test_regions_mark_published_figures_only_where_there_are_any():
    figure = plots.region_bars({"label": estimate_by(table(), "region")}, "simulated")
    assert "Ile Alatau (3)" in texts(figure)
    (points,) = (line for line in figure.axes[0].lines if line.get_marker() == "D")
    assert len(points.get_xdata()) == 1  # none for the Karakoram's test split


def test_estimates_without_intervals_say_why():
    bare = {
        name: Estimate(v, None, None, 9, 5, 3, "3 of 5 split blocks hold lake")
        for name, v in (("a", 0.5), ("soup", 0.6))
    }
    assert "only 3 split blocks hold a lake" in texts(plots.snapshots_vs_soup(bare, "simulated"))
    whole = {"soup": Estimate(0.6, 0.5, 0.7, 9, 50, 30), "MNDWI": Estimate(0.3, 0.2, 0.4, 9, 50, 30)}
    shown = texts(plots.comparison(whole, "simulated", {"U-Net": 0.91}))
    assert "U-Net (published, other data)" in shown and "this study's network" in shown and "0.600" in shown


def test_training_curves_skip_missing_values():
    log = pd.DataFrame({"epoch": [1, 2, 3], "loss_bce": [1, 0.8, 0.6], "loss": [3, 2, 1.5], "lr": 1e-4,
                        "val_iou": [np.nan, 0.2, 0.4]})  # fmt: skip
    figure = plots.training_curves(log, "simulated")
    assert len(figure.axes[1].lines[0].get_xdata()) == 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["total", "bce"]


def test_figures_maps_and_pages_share_their_colours():
    css = (Path(__file__).parents[1] / "book" / "_static" / "page.css").read_text(encoding="utf-8").lower()
    assert f".network {{ background: {colours.PREDICTION.lower()}; }}" in css
    assert f".ceiling {{ background: {colours.TRUTH.lower()}; }}" in css
    names = ("predicted, p >= 0.5", "label", "known truth", "lakes 2021")
    found = [colours.of_layer(name, number) for number, name in enumerate(names)]
    assert found == [colours.PREDICTION, colours.LABEL, colours.TRUTH, colours.PREDICTION]
    years = ("lakes 2017", "lakes 2021", "lakes 2022", "lakes 2023", "truth 2023", "mapped 2023", "skipped by the gate")
    found = colours.of_layers(years)
    assert len(set(found)) == len(found) and found[4:6] == [colours.TRUTH, colours.PREDICTION]


def test_the_cover_shows_a_middling_chip_among_those_with_much_lake():
    scored = table(n=16)
    for i in range(16):  # all of the lake is found in the small lakes, and some in the three that are the largest
        size, found = (1000 + i, (0.9, 0.5, 0.1)[i]) if i < 3 else (10, 1.0)
        lake, background = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        lake[150], lake[20] = round(size * found), round(size * (1 - found))
        scored.at[i, "lake"], scored.at[i, "background"] = lake, background
    assert cover_chip(scored) == 1
    for i in range(16):
        scored.at[i, "lake"] = np.zeros(BINS, np.int64)
    with pytest.raises(InputError, match="lake"):
        cover_chip(scored)


def test_pictures_are_as_bright_as_what_they_show_and_grey_stays_grey():
    from cryosentinel.data.chip_plots import DARKEST_WHITE, composite

    s2 = np.full((12, 10, 10), 1000, np.int16)
    s2[:, 0] = 0
    shown = composite(s2)
    assert (shown[0] == 0).all(), "no data is black"
    assert np.ptp(shown[1:]) == 0 and shown[5, 5, 0] == pytest.approx((1000 / DARKEST_WHITE) ** (1 / 1.8), abs=1e-5)
    s2[:, 1:] *= 9
    assert (composite(s2)[1:] == 1).all() and composite(s2, white=20000.0)[5, 5, 0] < 1
    assert (composite(np.zeros_like(s2)) == 0).all()


def test_regions_and_chips_have_names_for_people():
    from cryosentinel.evaluation.tables import short_name
    from cryosentinel.sensors import REGIONS, region_name

    assert region_name("ile_alatau") == "Ile Alatau" and not [r for r in REGIONS if "_" in region_name(r)]
    assert short_name("ile_alatau_43N_73808_476000_2022") == "Ile Alatau 2022, 73808/476000"
    assert short_name("282D_485L_3_3") == "282D_485L_3_3"
