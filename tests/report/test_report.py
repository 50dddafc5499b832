"""The report as text, pictures and page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import gradfit


@pytest.fixture
def fit(t_u, t_c):
    return gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, method="sgd", validation=0.2, seed=0)


def test_the_report_holds_result_training_and_verdict(fit):
    text = fit.report()
    assert "0.615 ± 0.040" in text
    assert "Verdict: too few points" in text
    assert "validation_loss" in text
    assert len(re.findall(r"^ +\d+00 ", text, re.MULTILINE)) == 10


def test_chinese_names_stay_aligned():
    data = {"读数": [1.0, 2, 3, 4], "温度": [3.1, 4.9, 7.2, 8.8]}
    table = gradfit.fit("温度 = 斜率*读数 + b", data=data).report().splitlines()
    rows = [line for line in table if "±" in line]
    widths = [sum(2 if ord(c) > 0x2E80 else 1 for c in row[: row.index("1 ")]) for row in rows if "1 " in row]
    assert "斜率" in rows[1]
    assert len(set(widths)) <= 2


class Page(HTMLParser):
    """Collects what a browser would fetch, and whether tags are balanced."""

    VOID = ("meta", "br", "path", "use", "image")

    def __init__(self):
        super().__init__()
        self.addresses, self.open, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith(("#", "data:"))
        ]
        self.ids += [named["id"]] if "id" in named else []
        self.links += [value[1:] for name, value in attrs if name == "href" and value and value.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parsed(page):
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_is_one_small_file_without_any_address(fit, tmp_path):
    page = fit.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert len(page.encode()) < 150_000
    assert "http" not in page
    assert "<script" not in page
    content = parsed(page)
    assert content.addresses == []
    assert len(set(content.ids)) == len(content.ids)
    assert set(content.links) <= set(content.ids)
    assert page.count("<svg") == 3


def test_the_page_stays_small_with_many_rows_and_epochs():
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 1, 20_000)
    fit = gradfit.fit(
        "y = a*x + b", data={"x": x, "y": x + generator.normal(0, 1, 20_000)}, method="adam", epochs=3000, validation=0.3
    )
    assert len(fit.to_html().encode()) < 150_000
    assert not fit.record.points.complete


def test_small_numbers_on_the_axes_survive_the_page():
    x = np.linspace(0, 3e-4, 20)
    page = gradfit.fit("y = a*x + b", data={"x": x, "y": 2 * x + 1e-5 * np.sin(1e5 * x)}).to_html()
    assert "0.00015" in page


def test_names_and_texts_are_data_on_the_page(t_u, t_c):
    name = "<script>alert(1)</script>"
    fit = gradfit.fit(f"t_c = w*`{name}` + b", data={name: t_u, "t_c": t_c})
    page = fit.to_html()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    parsed(page)


def test_the_page_is_the_same_bytes_each_time(fit):
    assert fit.to_html() == fit.to_html()


@pytest.mark.parametrize("draw", ["plot", "plot_history", "plot_residuals"])
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_written_whole(fit, draw, suffix, tmp_path):
    figure = getattr(fit, draw)(tmp_path / f"picture.{suffix}")
    assert (tmp_path / f"picture.{suffix}").stat().st_size > 1000
    assert figure.axes
    assert [path.name for path in tmp_path.iterdir()] == [f"picture.{suffix}"]


def test_an_unknown_kind_of_picture_is_refused(fit, tmp_path):
    with pytest.raises(gradfit.StorageError, match="known"):
        fit.plot(tmp_path / "picture.bmpx")
    assert not list(tmp_path.iterdir())


def test_several_inputs_are_drawn_measured_against_predicted():
    generator = np.random.default_rng(0)
    table = {"u": generator.normal(size=30), "v": generator.normal(size=30)}
    table["y"] = table["u"] + 2 * table["v"] + generator.normal(0, 0.1, 30)
    figure = gradfit.fit("y = a*u + b*v", data=table).plot()
    assert figure.axes[0].get_xlabel() == "predicted y"


def test_the_picture_shows_the_points_that_were_fitted(fit, t_u):
    drawn = np.concatenate([line.get_xdata() for line in fit.plot().axes[0].lines if line.get_linestyle() == "None"])
    assert sorted(drawn) == sorted(t_u)


def test_a_notebook_shows_the_table(fit):
    assert "0.615 ± 0.040" in fit._repr_html_()
    assert "w = 0.615 ± 0.040" in repr(fit)


def test_without_matplotlib_the_error_says_what_to_install(fit, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(gradfit.MissingDependencyError, match=r"gradfit\[plot\]"):
        fit.plot()


@pytest.mark.browser
def test_a_browser_shows_the_page_on_a_phone_without_sideways_scrolling(fit, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no browser: run .ci/install-browser")
    probe = "<p id=probe></p><script>probe.textContent='width '+document.documentElement.scrollWidth+' svg '+document.querySelectorAll('svg text').length</script></body>"
    page = tmp_path / "page.html"
    page.write_text(fit.to_html().replace("</body>", probe), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
               "--window-size=500,900", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    width, texts = map(int, re.search(r"width (\d+) svg (\d+)", shown).groups())
    assert width <= 500
    assert texts > 20
