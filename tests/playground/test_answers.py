"""Answers on the page: streamed, stopped, written again, edited, and with reasoning."""

import pytest

from support.browser import (
    Keys,
    answers,
    ask,
    asked,
    event,
    every,
    has_focus,
    is_idle,
    model_says,
    needs_browser,
    one,
    press,
    say,
    set_value,
    stored,
    text_of,
    texts,
    type_keys,
)
from support.live import until

pytestmark = needs_browser


def test_send_stream_and_remember(page):
    set_value(page, "max_tokens", 60)
    set_value(page, "temperature", 0)
    page.execute_script(
        "window.lengths = new Set(); new MutationObserver(() => lengths.add(document.querySelector('.assistant')"
        "?.textContent.length)).observe(document.getElementById('log'), {subtree: true, childList: true})"
    )
    ask(page, "Tell me a story about a dog.")
    assert page.execute_script("return lengths.size") > 3  # it grew
    assert "tokens/s" in text_of(page, "#speed") and "tokens/s" in answers(page)[0]
    used = text_of(page, "#context")
    assert used.endswith("of 2048 tokens") and int(used.split()[0]) >= 40
    assert has_focus(page, "#text")
    ask(page, "And a cat?", 2)
    [messages] = stored(page)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    page.find_element("id", "new").click()
    assert not answers(page) and one(page, "#empty").is_displayed()


def test_stop_by_escape_and_by_button(page, server):
    for stop in (lambda: type_keys(page, Keys.ESCAPE), lambda: press(page, "Stop")):
        model_says(page, [event("Once"), 5000, event("upon", "stop")])
        say(page, "Tell me a story about a dog.")
        until(lambda: not is_idle(page) and "Once" in answers(page)[-1])
        stop()
        until(lambda: is_idle(page))
        assert "Stopped." in answers(page)[-1] and "upon" not in answers(page)[-1]
    page.execute_script("fetch = plain")
    page.execute_script("document.getElementById('ignore_eos').checked = true")
    set_value(page, "max_tokens", 1900)
    say(page, "And now?")
    until(lambda: server.metric("num_requests_running") == 1 or is_idle(page))
    type_keys(page, Keys.ESCAPE)
    until(lambda: server.metric("num_requests_running") == 0)  # the server stops, too


def test_another_chat_ends_an_answer_and_gets_none_of_it(page):
    model_says(page, [event("Once"), 5000, event(" upon", "stop")], [event("Hello!", "stop")])
    say(page, "A story, please.")
    until(lambda: answers(page) and answers(page)[-1].startswith("Once"))
    page.find_element("id", "new").click()
    ask(page, "Hi")
    assert [turn.split("\n")[0] for turn in texts(page, ".turn")] == ["Hi", "Hello!"]
    assert sorted([message["content"] for message in chat] for chat in stored(page)) == [
        ["A story, please.", "Once"],
        ["Hi", "Hello!"],
    ]


@pytest.mark.parametrize(
    "replies, speed",
    [
        ([[5000, 1], [5500, 2], [6000, 11]], "10.0 tokens/s"),
        ([[5000, 8], [6000, 16], [7000, 28]], "10.0 tokens/s"),  # the first chunk holds eight
        ([[5000, 0], [5000, 4], [9000, 6]], "0.5 tokens/s"),  # a chunk without a token
        ([[5000, 8]], ""),
    ],
)
def test_tokens_per_second_count_from_the_first_chunk(page, replies, speed):
    events = [event("x", clock=ms, usage={"completion_tokens": n, "total_tokens": n}) for ms, n in replies]
    model_says(page, [*events, event("", "stop")])
    ask(page, "Hello")
    assert text_of(page, "#speed") == speed


def test_regenerate_and_choose_between_versions(page):
    model_says(page, [event("One", "stop")], [event("Two", "stop")], [event("Three", "stop")])
    ask(page, "Count")
    press(page, "Regenerate")
    until(lambda: "2 / 2" in answers(page)[0] and is_idle(page))
    assert answers(page)[0].startswith("Two")
    press(page, "Previous version")
    assert answers(page)[0].startswith("One") and "1 / 2" in answers(page)[0]
    ask(page, "More", 2)  # below the first version
    assert [message["content"] for message in asked(page)["messages"]] == ["Count", "One", "More"]
    press(page, "Next version", ".turn:nth-child(2)")
    assert len(answers(page)) == 1 and answers(page)[0].startswith("Two")
    page.refresh()
    until(lambda: every(page, "#chat-list .open"))
    one(page, "#chat-list .open").click()
    until(lambda: answers(page))
    assert answers(page)[0].startswith("Two") and "2 / 2" in answers(page)[0]


def test_edit_a_message(page):
    model_says(page, [event("One", "stop")], [event("Two", "stop")])
    ask(page, "Frist")
    page.find_element("id", "text").send_keys(Keys.ARROW_UP)  # in the empty box: the last message
    box = one(page, ".editor")
    assert page.switch_to.active_element == box and box.get_attribute("value") == "Frist"
    box.clear()
    box.send_keys("First" + Keys.ENTER)
    until(lambda: answers(page) and answers(page)[0].startswith("Two") and is_idle(page))
    assert "2 / 2" in text_of(page, ".turn.user") and asked(page)["messages"][0]["content"] == "First"
    press(page, "Previous version")
    assert text_of(page, ".turn.user").startswith("Frist") and answers(page)[0].startswith("One")
    press(page, "Edit", ".turn.user")
    one(page, ".editor").send_keys(Keys.ESCAPE)
    assert not every(page, ".editor") and text_of(page, ".turn.user").startswith("Frist")


def test_edit_an_answer_and_continue_it(page):
    model_says(page, [event("One two", "length")], [event(" four", "stop")])
    ask(page, "Count")
    assert "Cut at the most tokens" in answers(page)[0]
    press(page, "Edit", ".turn.assistant")
    one(page, ".editor").send_keys(" three" + Keys.ENTER)
    press(page, "Continue")
    until(lambda: len(page.execute_script("return asked")) == 2 and is_idle(page))
    body = asked(page)
    assert body["continue_final_message"] and not body["add_generation_prompt"]
    assert body["messages"][-1] == {"role": "assistant", "content": "One two three"}
    assert stored(page)[0][-1]["content"] == "One two three four"
    page.execute_script("fetch = plain")  # and by the server itself
    set_value(page, "max_tokens", 5)
    press(page, "Continue")
    until(lambda: is_idle(page) and len(stored(page)[0][-1]["content"]) > len("One two three four"))


def test_thinking_is_folded(page):
    model_says(page, [event("", reasoning_content="The user asks"), 300, event("42", "stop")])
    say(page, "What is the answer?")
    until(lambda: every(page, "details.thinking[open]"))
    until(lambda: is_idle(page))
    fold = one(page, "details.thinking")
    assert not fold.get_attribute("open") and "The user asks" not in answers(page)[0]
    one(page, "details.thinking summary").click()
    assert "The user asks" in answers(page)[0]
