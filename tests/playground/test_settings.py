"""Sampling controls, token probabilities, files and tools of the page."""

import json

from support.browser import (
    Keys,
    answers,
    ask,
    asked,
    call_event,
    event,
    every,
    is_idle,
    look,
    model_says,
    needs_browser,
    one,
    point_at,
    press,
    problem,
    say,
    set_value,
    stored,
    text_of,
    texts,
)
from support.live import until

pytestmark = needs_browser


def test_every_control_reaches_the_request(page):
    until(lambda: page.find_element("id", "temperature").get_attribute("placeholder") == "default 0.7")
    assert page.find_element("id", "top_k").get_attribute("placeholder") == "default 4"
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_tokens": 7, "seed": 3,
             "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": -0.3, "min_tokens": 2,
             }  # fmt: skip
    for name, value in given.items():
        set_value(page, name, value)
    set_value(page, "stop_texts", "END\n\\n\\n")
    set_value(page, "bad_words", "dog\nbig cat")
    set_value(page, "stop_token_ids", "5, 6")
    set_value(page, "allowed_token_ids", "1,2,3")
    set_value(page, "logit_bias", '{"7": -1}')
    set_value(page, "system", "Be brief.")
    page.execute_script("document.getElementById('system').dispatchEvent(new Event('change'))")
    page.execute_script(
        "for (const name of ['ignore_eos', 'skip_special_tokens']) document.getElementById(name).click()"
    )
    model_says(page, [event("Yes", "stop")])
    ask(page, "Hello")
    body = asked(page)
    expected = given | {
        "stop": ["END", "\n\n"], "bad_words": ["dog", "big cat"], "stop_token_ids": [5, 6], "stream": True,
        "allowed_token_ids": [1, 2, 3], "logit_bias": {"7": -1}, "ignore_eos": True, "skip_special_tokens": False,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    }  # fmt: skip
    assert body == expected
    page.refresh()
    until(lambda: text_of(page, "#model") == "longcat-tiny")
    assert page.find_element("id", "top_k").get_attribute("value") == "5"
    press(page, "Reset the settings")
    assert page.find_element("id", "top_k").get_attribute("value") == ""


def test_a_schema_and_stop_strings_by_the_server(page):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    set_value(page, "schema", json.dumps(schema))
    set_value(page, "max_tokens", 60)
    ask(page, "A number?")
    assert json.loads(stored(page)[0][-1]["content"])["n"] in range(100)
    set_value(page, "schema", "")
    set_value(page, "stop_texts", "time\n.")
    press(page, "New chat")
    ask(page, "Tell me a story about a dog.")
    text = stored(page)[0][-1]["content"]
    assert text and "time" not in text and "." not in text


def test_token_probabilities(page):
    page.execute_script("document.getElementById('probabilities').click()")
    set_value(page, "max_tokens", 12)
    set_value(page, "temperature", 0)
    ask(page, "Tell me a story about a dog.")
    tokens = every(page, ".token")
    assert 5 < len(tokens) <= 12
    point_at(tokens[2])
    until(lambda: every(page, ".token-table tr"))
    rows = texts(page, ".token-table tr")
    assert len(rows) == 5 and all("%" in row for row in rows) and "chosen" in rows[0]
    look(page, "tokens")
    one(page, ".token-list").send_keys(Keys.ARROW_RIGHT)
    assert "current" in tokens[3].get_attribute("class")
    press(page, "Text")
    assert not every(page, ".token") and every(page, ".markup")
    press(page, "Tokens")
    assert every(page, ".token")


def drop(page, name, text, event="drop"):
    page.execute_script(
        "const data = new DataTransfer(); data.items.add(new File([arguments[1]], arguments[0]));"
        "const target = document.getElementById('text');"
        "target.dispatchEvent(arguments[2] === 'paste'"
        " ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})"
        " : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))",
        name, text, event,
    )  # fmt: skip


def test_text_files_are_dropped_pasted_and_chosen(page, tmp_path):
    (tmp_path / "chosen.txt").write_text("Once upon a time")
    page.find_element("id", "file").send_keys(str(tmp_path / "chosen.txt"))
    drop(page, "dropped.md", "a dog")
    drop(page, "pasted.csv", "a,b", "paste")
    until(lambda: len(every(page, "#files li")) == 3 and "counting" not in text_of(page, "#files"))
    assert texts(page, "#files li")[0].split("\n")[:2] == ["chosen.txt", "4 tokens"]
    press(page, "Remove pasted.csv")
    drop(page, "image.png", "\0")
    assert "image.png is not a text file" in problem(page) and len(every(page, "#files li")) == 2
    model_says(page, {"message": "full", "status": 429}, [event("Read", "stop")])
    say(page, "What is in them?")
    assert "busy" in problem(page)
    assert len(every(page, "#files li")) == 2  # kept, as the text is
    ask(page, "")
    [message] = asked(page)["messages"]
    assert (
        message["content"]
        == "chosen.txt:\n```\nOnce upon a time\n```\n\ndropped.md:\n```\na dog\n```\n\nWhat is in them?"
    )
    assert [chip.split("\n")[0] for chip in texts(page, ".chips li")] == ["chosen.txt", "dropped.md"]


def test_tool_calls_with_results_that_can_be_edited(page):
    press(page, "Add an example")
    set_value(page, "temperature", 0)
    set_value(page, "max_tokens", 80)
    say(page, "What is the weather in Paris?")
    until(lambda: every(page, "form.results"))
    card = one(page, ".call")
    assert "get_weather" in card.text and '"city": "Paris"' in card.text
    box = page.switch_to.active_element  # the focus is where the result goes
    assert '"temperature": 21' in box.get_attribute("value")
    look(page, "tools")
    box.send_keys(Keys.ENTER)
    until(lambda: len(answers(page)) == 2 and is_idle(page))
    assert text_of(page, ".turn.tool").startswith("get_weather → ")
    model_says(page, [event("Rain.", "stop")])
    press(page, "Edit", ".turn.tool")
    box = page.switch_to.active_element
    box.clear()
    box.send_keys("rain" + Keys.ENTER)
    until(lambda: "2 / 2" in text_of(page, ".turn.tool") and is_idle(page))
    body = asked(page)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool"]
    assert body["messages"][2]["content"] == "rain" and body["tool_choice"] == "auto"
    assert body["messages"][1]["tool_calls"][0]["id"] == body["messages"][2]["tool_call_id"]


def test_results_of_tools_survive_an_error(page):
    model_says(page, [call_event()], {"message": "[engine] it is full", "status": 503}, [event("Sunny", "stop")])
    ask(page, "What is the weather in Paris?")
    page.switch_to.active_element.send_keys(" today" + Keys.ENTER)
    assert "it is full" in problem(page) and "today" in text_of(page, ".turn.tool")
    press(page, "Try again")
    until(lambda: len(answers(page)) == 2 and is_idle(page))
    assert not text_of(page, "#problem") and answers(page)[1].startswith("Sunny")
