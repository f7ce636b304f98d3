"""The page in a real browser: the slider's numbers are Python's, nothing is fetched, nothing fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddet_yolo.evaluate.detection_files import read_detections
from meddet_yolo.evaluate.detections import align
from meddet_yolo.evaluate.ground_truth import truth_of
from meddet_yolo.evaluate.measures import measure
from meddet_yolo.evaluate.noise import NoiseResult
from meddet_yolo.evaluate.page.page import write_page
from meddet_yolo.evaluate.pool import Pool
from meddet_yolo.evaluate.results import Evaluation

from .conftest import HOSTILE

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("there is no Chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1100,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser: Any, judged: Evaluation) -> Any:
    assert judged.out is not None
    browser.get((judged.out / "report.html").absolute().as_uri())
    return browser


def pools(judged: Evaluation, small: Path) -> list[Pool]:
    truth = truth_of(small)
    return [Pool(align(read_detections(m.source, truth), truth), truth.images) for m in judged.models]


def move(page: Any, position: int) -> float:
    """Set the slider, and return the threshold that is shown."""
    page.execute_script(
        "const s = document.getElementById('threshold'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        position,
    )
    return float(page.execute_script("return document.getElementById('threshold-value').textContent"))


def shown(page: Any, model: int, what: str) -> str:
    return str(page.execute_script(f"return document.querySelector('[data-count=\"{model}.{what}\"]').textContent"))


def embedded(page: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(page.execute_script("return document.getElementById('data').textContent"))
    return content


def test_the_sliders_numbers_are_those_of_the_measures(page, judged, small):
    thresholds = embedded(page)["thresholds"]
    for position in (0, 60, len(thresholds) // 2, 150, len(thresholds) - 1):
        text = move(page, position)
        assert text == pytest.approx(thresholds[position], abs=5e-4)
        for number, pool in enumerate(pools(judged, small)):
            point = measure("operating_point", judged.names, threshold=thresholds[position])
            point.adopt(pool)
            scores = point.compute()
            rows = point.details()["classes"].values()
            counts = {"tp": "hits", "fp": "false_alarms", "fn": "missed"}
            assert {key: int(shown(page, number, key)) for key in counts} == {
                key: sum(row[name] for row in rows) for key, name in counts.items()
            }
            for key in ("sensitivity", "precision", "F1", "fp_per_image"):
                assert shown(page, number, key) == ("–" if np.isnan(scores[key]) else f"{scores[key]:.3f}"), key
            place = page.execute_script(
                f"return document.querySelectorAll('#froc .point')[{number}].getAttribute('data-fp-per-image')"
            )
            assert float(place) == scores["fp_per_image"]


def test_it_opens_at_the_first_models_threshold_with_its_scores(page, judged):
    first = judged.models[0]
    value = page.execute_script("return document.getElementById('threshold-value').textContent")
    assert value == f"{first.threshold:.3f}"
    assert shown(page, 0, "sensitivity") == f"{first.scores['sensitivity'].value:.3f}"


def test_classes_have_numbers_of_their_own(page, judged):
    page.execute_script("document.querySelectorAll('#groups button')[2].click()")
    scores = judged.models[0].scores
    assert shown(page, 0, "sensitivity") == f"{scores[f'sensitivity/{HOSTILE}'].value:.3f}"


def test_the_slider_filters_the_cases(page, judged, small):
    data = embedded(page)
    truth = truth_of(small)
    for kind, wanted in ((0, "miss"), (1, "alarm"), (2, "random")):
        page.execute_script(f"document.querySelectorAll('#kinds button')[{kind}].click()")
        for position in (5, 90, 190):
            move(page, position)
            visible = page.execute_script("return document.querySelectorAll('.case:not([hidden])').length")
            chosen = [c for c in data["cases"] if c["kind"] == wanted and c["model"] in (0, None)]
            at = data["thresholds"][position]
            pool = pools(judged, small)[0]
            match, alarm = pool.matches()
            hit = set(match[(match >= 0) & (pool.scores >= at)].tolist())
            missing = {int(i) for n, i in enumerate(pool.truth_image) if n not in hit}
            wrong = set(pool.image[alarm & (pool.scores >= at)].tolist())
            concerned = {"miss": missing, "alarm": wrong, "random": set(range(len(truth)))}[wanted]
            assert visible == min(len(concerned), len(chosen)), (wanted, position)
    assert page.execute_script("return document.querySelectorAll('.case:not([hidden]) .side svg image').length") > 0


def test_nothing_is_fetched_nothing_fails_and_data_is_only_text(page, judged):
    page.get_log("performance")  # of the browser's own first tab
    page.get_log("browser")
    page.refresh()
    move(page, 30)
    page.execute_script("document.querySelectorAll('[data-theme-choice=dark]')[0].click()")
    page.execute_script("document.querySelector('.case:not([hidden])').click()")
    problems = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not problems
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file://", "data:image/jpeg")) for url in asked)
    assert page.execute_script("return window.hacked") is None
    assert page.execute_script("return document.querySelectorAll('#groups button')[2].textContent") == HOSTILE
    dark = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    page.execute_script("document.querySelectorAll('[data-theme-choice=light]')[0].click()")
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") != dark


def test_a_policy_stops_what_would_reach_the_network(page):
    page.execute_script(
        "const i = new Image(); i.id = 'foreign'; i.src = 'https://example.invalid/x.png'; document.body.append(i)"
    )
    blocked = [entry["message"] for entry in page.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert blocked


def test_it_fits_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") == 380
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("value", [0.0625, 0.1875, 0.0005, 0.9375, 2.5, 0.1, 1 / 3, 0.0, 1.0, 12.0625, -0.0625])
def test_numbers_are_rounded_as_in_python(page, value):
    assert page.execute_script(f"return fixed({value!r})") == f"{value:.3f}"


def test_accuracy_under_noise_is_drawn_for_every_model(browser, judged, small, tmp_path):
    noisy = tuple(
        NoiseResult(model=m.name, noise="rician", sigma=s, map50_95=0.5 - s, map50=0.8, recall=0.7)
        for m in judged.models
        for s in (0.0, 0.1, 0.2)
    )
    file = write_page(replace(judged, noise=noisy), truth_of(small), pools(judged, small), tmp_path)
    browser.get_log("browser")
    browser.get(file.as_uri())
    dots = browser.execute_script(
        "const at = (c) => ['cx', 'cy'].map((key) => Number(c.getAttribute(key)));"
        "return [...document.querySelectorAll('#noise-0 circle')].map(at)"
    )
    assert len(dots) == 6 and dots[:3] == dots[3:] and dots[0][0] < dots[1][0] < dots[2][0]
    assert dots[1][1] - dots[0][1] == pytest.approx(dots[2][1] - dots[1][1]) and dots[1][1] > dots[0][1]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
