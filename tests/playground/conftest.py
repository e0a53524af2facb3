"""One browser for all tests of the page."""

import pytest

from support.browser import started_browser, text_of
from support.live import until


@pytest.fixture(scope="session")
def browser():
    with started_browser() as driver:
        driver.set_script_timeout(10)
        yield driver


@pytest.fixture
def page(browser, server):
    """The page as a browser shows it that was never there."""
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "all"})
    browser.get(server.url + "/")
    until(lambda: text_of(browser, "#model") == "longcat-tiny")
    return browser
