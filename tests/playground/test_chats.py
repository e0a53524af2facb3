"""Chats that the browser keeps: list, search, names, export and import."""

import json

from support.browser import (
    Keys,
    answers,
    ask,
    event,
    every,
    in_page,
    is_idle,
    model_says,
    needs_browser,
    one,
    press,
    problem,
    stored,
    text_of,
    titles,
    type_keys,
)
from support.live import until

try:
    from selenium.webdriver.support.expected_conditions import alert_is_present
    from selenium.webdriver.support.wait import WebDriverWait
except ImportError:  # needs_browser skips the tests
    pass

pytestmark = needs_browser


def delete(page, sure):
    """Deletes the first chat; the click comes later, as the question stops scripts."""
    page.execute_script("setTimeout(() => document.querySelector('#chat-list [aria-label=Delete]').click())")
    question = WebDriverWait(page, 30).until(alert_is_present())
    if sure:
        question.accept()
    else:
        question.dismiss()


def test_chats_are_kept_searched_renamed_and_deleted(page):
    model_says(page, *([event(text, "stop")] for text in ("Woof", "Meow", "Moo")))
    for text in ("About dogs", "About cats", "About cows"):
        ask(page, text)
        press(page, "New chat")
    until(lambda: titles(page) == ["About cows", "About cats", "About dogs"])
    page.find_element("id", "text").send_keys("half a thought")
    page.refresh()
    until(lambda: titles(page) == ["About cows", "About cats", "About dogs"])
    assert page.find_element("id", "text").get_attribute("value") == "half a thought"
    page.find_element("id", "search").send_keys("meow")  # also in answers
    until(lambda: titles(page) == ["About cats"])
    press(page, "Rename", "#chat-list")
    type_keys(page, "Felines" + Keys.ENTER)
    until(lambda: titles(page) == ["Felines"])
    delete(page, sure=False)
    assert titles(page) == ["Felines"]
    delete(page, sure=True)
    until(lambda: text_of(page, "#chat-note") == "No chat has these words.")
    page.find_element("id", "search").clear()
    page.find_element("id", "search").send_keys(" ")
    until(lambda: titles(page) == ["About cows", "About dogs"])
    every(page, "#chat-list .open")[1].click()
    until(lambda: answers(page) and answers(page)[0].startswith("Woof"))
    assert text_of(page, "[aria-current]") == "About dogs"


def test_export_and_import(page, tmp_path):
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    model_says(page, [event("One", "stop")], [event("Two", "stop")])
    ask(page, "Count")
    press(page, "Regenerate")
    until(lambda: "2 / 2" in answers(page)[0] and is_idle(page))
    press(page, "Export")
    file = tmp_path / "longcat-chats.json"
    until(lambda: file.exists() and file.stat().st_size)
    before = stored(page)
    in_page(page, "for (const chat of await store.allChats()) await store.deleteChat(chat.id)")
    page.refresh()
    until(lambda: text_of(page, "#model") == "longcat-tiny")
    page.find_element("id", "import-file").send_keys(str(file))
    until(lambda: titles(page) == ["Count"])
    assert stored(page) == before and "1 chats imported" in text_of(page, "#chat-note")
    one(page, "#chat-list .open").click()
    until(lambda: answers(page))
    assert answers(page)[0].startswith("Two") and "2 / 2" in answers(page)[0]
    loop = {
        "format": "longcat-chats",
        "chats": [{"turns": {"1": {"id": 1, "parent": 1, "role": "user"}}, "chosen": {"1": 1}}],
    }
    tool = {
        "format": "longcat-chats",
        "chats": [{"turns": {"1": {"id": 1, "parent": 0, "role": "tool", "results": []}}, "chosen": {}}],
    }
    for name, text in {
        "a": "no JSON",
        "b": "{}",
        "c": json.dumps(loop),
        "d": json.dumps(tool),
        "e": '{"chats": 1}',
    }.items():
        (tmp_path / name).write_text(text)
        page.find_element("id", "import-file").send_keys(str(tmp_path / name))
        assert f"{name} is not a file of chats" in problem(page)
        press(page, "Close")
    assert titles(page) == ["Count"]
