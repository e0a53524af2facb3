"""What the page says when something fails, and that typed text stays."""

import pytest

from support.browser import (
    Keys,
    answers,
    ask,
    event,
    every,
    is_idle,
    model_says,
    needs_browser,
    press,
    problem,
    rendered,
    say,
    set_value,
    text_of,
    texts,
    titles,
)
from support.live import LiveServer, until

pytestmark = needs_browser


def test_after_an_error_the_typed_text_is_there(page):
    set_value(page, "temperature", -1)
    say(page, "A long question")
    assert "temperature" in problem(page) and "Your message is in the box" in problem(page)
    assert page.find_element("id", "text").get_attribute("value") == "A long question" and not every(page, ".turn")
    assert not titles(page)
    set_value(page, "temperature", 0)
    set_value(page, "tools", "[{")
    say(page, "?")
    until(lambda: "not JSON" in text_of(page, "#problem"))
    assert "Change it in the settings" in problem(page)
    set_value(page, "tools", "")
    set_value(page, "max_tokens", 5)
    ask(page, "")
    assert [turn.split("\n")[0] for turn in texts(page, ".turn.user")] == ["A long question?"]
    assert not text_of(page, "#problem")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ({"message": "long", "code": "context_length_exceeded", "status": 400}, "Start a new chat"),
        ({"message": "busy", "status": 503}, "Wait 5 s"),
        ({"message": "large", "status": 413}, "Send less text"),
        ({"message": "who?", "status": 401}, "Enter the API key"),
    ],
)
def test_an_error_says_what_to_do(page, error, advice):
    model_says(page, error)
    say(page, "Hello")
    assert advice in problem(page) and error["message"] in problem(page)
    assert page.find_element("id", "key").is_displayed() == (error["status"] == 401)


def test_a_server_that_is_gone(page):
    page.execute_script("fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    say(page, "Hello")
    assert "The server does not answer." in problem(page) and "See that it runs" in problem(page)
    assert page.find_element("id", "text").get_attribute("value") == "Hello"
    model_says(page, [event("Once"), "cut"], [event(" upon", "stop")])
    say(page, "?")
    until(lambda: text_of(page, "#problem") and is_idle(page))
    assert answers(page)[0].startswith("Once")  # what had come is there, and can go on
    press(page, "Try again")
    until(lambda: is_idle(page) and not text_of(page, "#problem"))


def test_a_key_is_asked_for(browser, tiny):
    with LiveServer(tiny, "--api-key", "secret") as server:
        browser.get(server.url + "/")
        until(lambda: browser.find_element("id", "key").is_displayed())
        assert "API key" in text_of(browser, "#model")
        browser.find_element("id", "key").send_keys("secret" + Keys.TAB)
        until(lambda: text_of(browser, "#model") == "longcat-tiny")
        set_value(browser, "max_tokens", 5)
        ask(browser, "Hello")
        rendered(browser, "p")
