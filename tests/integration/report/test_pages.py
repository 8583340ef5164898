"""The pages in a real browser, as wide as a screen and as a telephone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver

from ssray.report.diagnosis import render_diagnosis
from ssray.search.trials import TrialResult
from tests.unit.diagnosis.test_diagnosis import diagnosed, projecting, texture
from tests.unit.report.test_evaluation import (
    gallery_image,
    labelled_report,
    render,
    unlabelled_report,
)
from tests.unit.report.test_search import page as search_page
from tests.unit.report.test_search import trials as trials  # a fixture


@pytest.mark.timeout(360)
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report(browser: webdriver.Chrome, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    report = replace(labelled_report(), gallery=[gallery_image(label) for label in (1, 0, None)])
    hostile = replace(labelled_report("w" * 80, seed=1), facts=[("path", "/" + "y" * 120)])
    path.write_text(render(report, hostile, unlabelled_report()), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(path.as_uri())

    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []
    pictures = browser.execute_script(
        "return [...document.images].map(image => [image.naturalWidth, image.clientWidth])"
    )
    assert len(pictures) == 4 + 4 + 3 + 4 + 4 + 3 + 3
    assert all(natural > 0 and shown > 0 for natural, shown in pictures)
    assert browser.execute_script("return innerWidth") == width
    content, room = browser.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert content <= room
    for chart, count in (("roc", 2), ("histogram", 3)):
        sizes = browser.execute_script(
            "return [...document.querySelectorAll(`svg.${arguments[0]}`)].map(svg => {"
            " const box = svg.getBoundingClientRect();"
            " return [box.width, box.height, svg.checkVisibility()] })",
            chart,
        )
        assert len(sizes) == count
        assert all(wide > 200 and high > 150 and visible for wide, high, visible in sizes)
    requests = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert requests == []


@pytest.mark.timeout(360)
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_a_search(
    browser: webdriver.Chrome, tmp_path: Path, trials: list[TrialResult], width: int
) -> None:
    path = tmp_path / "sweep.html"
    path.write_text(search_page(trials), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(path.as_uri())
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []
    content, room = browser.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert content <= room
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg.parallel')].map(svg => {"
        " const box = svg.getBoundingClientRect(); return [box.width, box.height] })"
    )
    assert len(sizes) == 1
    assert min(sizes[0]) > 100


def test_the_diagnosis(browser: webdriver.Chrome, tmp_path: Path) -> None:
    images = texture()
    path = tmp_path / "diagnosis.html"
    page = render_diagnosis(diagnosed(images, projecting(images)), "today", "1.2.3")
    path.write_text(page, encoding="utf-8")
    for width in (1280, 400):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(path.as_uri())
        content, room = browser.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        )
        assert content <= room
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('svg.lines polyline')].map(line => {"
            " const box = line.getBoundingClientRect(); return [box.width, box.height] })"
        )
        assert len(boxes) == 10
        assert all(wide > 150 for wide, _ in boxes)
        assert boxes[2][1] > 80  # from every trial right to none
