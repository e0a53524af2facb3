"""Languages, keyboard, screen readers, small and dark screens."""

import json

from support.browser import (
    MARKDOWN,
    Keys,
    answers,
    as_seen,
    ask,
    asked,
    call_event,
    event,
    every,
    has_focus,
    is_idle,
    look,
    model_says,
    needs_browser,
    one,
    rendered,
    stored,
    text_of,
    texts,
    type_keys,
)
from support.live import until

pytestmark = needs_browser


def test_chinese_by_the_browsers_language_and_by_choice(page, server):
    def words():
        return [text_of(page, "#send"), text_of(page, "#new")]

    assert words() == ["Send", "New chat"]
    agent = page.execute_script("return navigator.userAgent")
    page.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "zh-CN,en"})
    page.refresh()
    until(lambda: words() == ["发送", "新对话"])
    assert page.execute_script("return document.documentElement.lang") == "zh-CN"
    model_says(
        page, [event(MARKDOWN.replace("Squares", "正方形"), "stop", usage={"completion_tokens": 9, "total_tokens": 30})]
    )
    ask(page, "正方形的面积是多少？")
    rendered(page, "math")
    look(page, "chinese")
    page.execute_script(
        "const choice = document.getElementById('language'); choice.value = 'en';"
        "choice.dispatchEvent(new Event('change'))"
    )
    assert words() == ["Send", "New chat"] and "Regenerate" in answers(page)[0]
    page.refresh()
    until(lambda: words() == ["Send", "New chat"])
    page.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "en-US"})


def test_the_keyboard_alone(page):
    model_says(page, [event("One", "length")], [event("Two", "length")], [event(" and", "stop")])
    page.find_element("id", "text").send_keys("a", Keys.SHIFT, Keys.ENTER, Keys.NULL, "b", Keys.ENTER)
    until(lambda: answers(page) and is_idle(page))
    assert asked(page)["messages"][0]["content"] == "a\nb"
    type_keys(page, "r", Keys.ALT)
    until(lambda: len(page.execute_script("return asked")) == 2 and is_idle(page))
    type_keys(page, "c", Keys.ALT)
    until(lambda: len(page.execute_script("return asked")) == 3 and is_idle(page))
    assert stored(page)[0][-1]["content"] == "Two and"
    type_keys(page, "k", Keys.ALT)
    assert has_focus(page, "#search")
    type_keys(page, "m", Keys.ALT)
    assert has_focus(page, "#text")
    type_keys(page, "n", Keys.ALT)
    assert not answers(page)
    one(page, "#log").click()
    page.execute_script("document.getElementById('log').focus()")
    type_keys(page, "?")
    rows = texts(page, "#shortcut-list tr")
    assert len(rows) >= 12 and any("Alt" in row and "Regenerate" in row for row in rows)
    look(page, "shortcuts")
    type_keys(page, Keys.ESCAPE)
    assert not one(page, "#help").is_displayed()


def test_a_screen_reader_is_told(page):
    model_says(page, [event("Hello, "), event("world", "stop")])
    page.execute_script(
        "window.told = []; const status = document.getElementById('status');"
        "new MutationObserver(() => told.push(status.textContent)).observe(status, {childList: true})"
    )
    ask(page, "Hi")
    assert page.execute_script("return told") == ["The model is writing.", "Hello, world"]
    assert [turn.get_attribute("aria-label") for turn in every(page, ".turn")] == ["You", "Model"]
    names = page.execute_script(
        "return [...document.querySelectorAll('button, input, textarea, select')].filter(one => !one.hidden).map(one =>"
        "(one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent).trim())"
    )
    assert len(names) > 30 and all(names)


def test_light_dark_and_phone(page):
    model_says(page, [event(MARKDOWN, "stop", usage={"completion_tokens": 120, "total_tokens": 160})], [call_event()])
    ask(page, "How large is a square? Show a formula, a table and code.")
    rendered(page, "math")
    backs = {}
    for name, width, height, scheme in [
        ("light", 1280, 800, "light"), ("dark", 1280, 800, "dark"),
        ("phone-light", 390, 780, "light"), ("phone-dark", 390, 780, "dark"),
    ]:  # fmt: skip
        as_seen(page, width, height, scheme)
        look(page, name)
        backs[name] = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), name
        send = page.find_element("id", "send").rect
        assert send["x"] + send["width"] <= width and send["y"] + send["height"] <= height, name
    assert backs["light"] == backs["phone-light"] != backs["dark"]
    for panel in ("settings", "chats"):
        assert not page.find_element("id", panel).is_displayed()
        page.find_element("id", f"show-{panel}").click()
        assert page.find_element("id", panel).is_displayed()
        look(page, f"phone-{panel}")
        type_keys(page, Keys.ESCAPE)
        assert not page.find_element("id", panel).is_displayed()
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_comes_from_the_server(page):
    urls = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in page.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert urls and all(url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:")) for url in urls)
    severe = [
        entry["message"]
        for entry in page.get_log("browser")
        if entry["level"] == "SEVERE" and "status of 4" not in entry["message"]
    ]
    assert not severe
