"""The page of ``demo --serve`` in headless Chromium; ``nox -s browser`` runs it, and CI does not."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from support.served_demo import served

from aioredis_monitored.testing import RedisServer

# Far longer than anything takes that happens.
MILLISECONDS = 60_000
SCREENSHOT = os.environ.get("AIOREDIS_MONITORED_SCREENSHOT")

expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Without its sandbox, which needs more rights than containers give.
        launched = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def shop():
    with RedisServer() as server, served(server.url) as (process, url):
        yield process, url


@pytest.fixture
def problems():
    return []


@pytest.fixture
def page(browser, shop, problems):
    _, url = shop
    opened = browser.new_page(viewport={"width": 1000, "height": 640})
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(url)
    yield opened
    opened.close()


def row(page, label):
    return page.locator("tr", has=page.locator("th", has_text=re.compile(label)))


def test_requests_appear_with_their_spans_and_without_an_error_in_the_console(page, problems):
    page.get_by_role("button", name="Show the product").click()
    expect(page.get_by_role("status")).to_have_text("GET /products/42: 200")
    expect(row(page, "^GET /products/42$")).to_have_count(1)
    expect(row(page, r"^GET demo:\w+:product:42$")).to_have_count(2)
    page.get_by_role("button", name="Check out").click()
    expect(row(page, "^POST /checkout$")).to_have_count(1)
    failed = row(page, r"^LPUSH demo:\w+:\{user:7\}:checkouts \?$")
    expect(failed).to_contain_class("error")
    expect(failed.locator(".remark")).to_have_text("WRONGTYPE")
    expect(failed.locator(".duration")).to_have_text(re.compile(r"^\d+\.\d\d ms$"))
    expect(row(page, r"^process demo:\w+:orders$")).to_have_count(1)

    assert problems == []
    if SCREENSHOT:
        page.screenshot(path=SCREENSHOT)


def test_bars_lie_within_the_time_of_their_request(page):
    page.get_by_role("button", name="Show the product").click()
    expect(row(page, "^GET /products/42$")).to_have_count(1)
    (bars,) = page.evaluate(
        """[...document.querySelectorAll("table")].map((table) => [...table.querySelectorAll(".bar")].map((bar) => {
            const [inner, outer] = [bar.getBoundingClientRect(), bar.parentElement.getBoundingClientRect()];
            return [inner.left - outer.left, outer.right - inner.right, inner.width];
        }))"""
    )

    assert len(bars) > 3
    for left, right, width in bars:
        assert left >= 0
        # The least width of a bar may reach beyond.
        assert right >= -2
        assert width >= 2


def test_text_of_spans_is_never_markup(page, shop, problems):
    _, url = shop
    hostile = "<img src=x onerror=\"document.title='taken'\">"
    span = {"label": hostile, "depth": 0, "start": 0, "duration": 1, "remark": hostile, "is_error": True}
    page.route("**/traces", lambda route: route.fulfill(content_type="application/json", body=json.dumps([[span]])))
    page.goto(url)

    expect(page.locator("th")).to_have_text(hostile)
    expect(page.locator(".remark")).to_have_text(hostile)
    assert page.locator("img").count() == 0
    assert page.title() == "aioredis_monitored: the last requests"
    assert problems == []


def test_page_says_when_the_shop_is_gone(page, shop):
    process, _ = shop
    process.send_signal(signal.SIGTERM)

    expect(page.get_by_role("status")).to_contain_text("No answer")


def test_page_fits_into_a_phone(page):
    page.get_by_role("button", name="Check out").click()
    expect(row(page, "^POST /checkout$")).to_have_count(1)
    page.set_viewport_size({"width": 360, "height": 640})

    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_package_has_the_page():
    import aioredis_monitored.cli

    assert (Path(aioredis_monitored.cli.__file__).parent / "page" / "index.html").exists()
