"""The playground in headless Chromium: send, stream, stop, tool calls, keyboard, and how it looks.

LONGCAT_SCREENSHOTS=FOLDER keeps the pictures.
"""

import json
import os
import shutil

import pytest

from support.live import LiveServer, until

try:
    from selenium import webdriver
except ImportError:
    webdriver = None

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER and webdriver),
        reason="needs Chromium (apt-get install chromium chromium-driver) and the extra `server-test`",
    ),
]

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a city",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                         "required": ["city"]}}}]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,800",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        yield driver


@pytest.fixture
def page(browser, server):
    browser.get(server.url + "/")
    until(lambda: browser.find_element("id", "model").text == "longcat-tiny")
    return browser


def set_value(page, name, value):
    page.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, str(value))


def say(page, text):
    page.find_element("id", "text").send_keys(text + "\ue007")  # and Enter


def answers(page):
    return page.find_elements("css selector", ".turn.assistant")


def is_idle(page):
    return page.find_element("id", "send").is_displayed()


def look(page, name):
    if folder := os.environ.get("LONGCAT_SCREENSHOTS"):
        os.makedirs(folder, exist_ok=True)
        page.save_screenshot(os.path.join(folder, name + ".png"))


def as_seen(page, width, height, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def test_send_stream_and_remember(page):
    set_value(page, "max_tokens", 60)
    set_value(page, "temperature", 0)
    page.execute_script(
        "window.lengths = new Set(); new MutationObserver(() => lengths.add(document.querySelector('.assistant')"
        "?.textContent.length)).observe(document.getElementById('log'), {subtree: true, childList: true})"
    )
    say(page, "Tell me a story about a dog.")
    until(lambda: answers(page) and is_idle(page))
    assert page.execute_script("return lengths.size") > 3  # it grew
    assert "tokens/s" in page.find_element("id", "speed").text
    used = page.find_element("id", "context").text
    assert used.endswith("of 2048 tokens") and int(used.split()[0]) >= 60
    assert page.switch_to.active_element.get_attribute("id") == "text"
    say(page, "And a cat?")
    until(lambda: len(answers(page)) == 2 and is_idle(page))
    assert page.execute_script("return messages.map(m => m.role)") == ["user", "assistant"] * 2
    page.find_element("id", "reset").click()
    assert not answers(page) and page.execute_script("return messages.length") == 0


# The whole answer takes half a second: in the page it arrives as over a slow line.
SLOW_LINE = """
const plain = fetch;
fetch = async (...request) => {
  const response = await plain(...request), reader = response.body.getReader();
  const pull = async (sink) => {
    await new Promise((wake) => setTimeout(wake, 300));
    const {done, value} = await reader.read();
    if (done) sink.close();
    else for (let i = 0; i < value.length; i += 2048) sink.enqueue(value.slice(i, i + 2048));
  };
  return new Response(new ReadableStream({pull, cancel: (why) => reader.cancel(why)}), response);
};
"""


def test_stop_by_escape_and_by_button(page, server):
    page.execute_script(SLOW_LINE)
    set_value(page, "max_tokens", 1500)
    page.execute_script("const r = request; request = () => ({...r(), ignore_eos: true})")
    for stop in (lambda: page.find_element("tag name", "body").send_keys("\ue00c"),
                 lambda: page.find_element("id", "stop").click()):  # fmt: skip
        say(page, "Tell me a story about a dog.")
        until(lambda: answers(page) and len(answers(page)[-1].text) > 20)
        stop()
        until(lambda: is_idle(page))
        assert answers(page)[-1].text.endswith("[stopped]")
        until(lambda: server.metric("num_requests_running") == 0)


def test_new_chat_during_an_answer_forgets_it(page, server):
    page.execute_script(SLOW_LINE)
    set_value(page, "max_tokens", 1500)
    set_value(page, "temperature", 0)
    page.execute_script("const r = request; request = () => ({...r(), ignore_eos: true})")
    say(page, "Tell me a story about a dog.")
    until(lambda: answers(page) and len(answers(page)[-1].text) > 20)
    page.find_element("id", "reset").click()
    until(lambda: server.metric("num_requests_running") == 0)
    assert is_idle(page) and page.execute_script("return messages.length") == 0
    set_value(page, "max_tokens", 10)
    for _ in range(2):  # at once, too: the first answer may still be ending
        say(page, "Hello!")
        until(lambda: answers(page) and answers(page)[-1].text)
        if _ == 0:
            page.find_element("id", "reset").click()
    until(lambda: is_idle(page))
    assert page.execute_script("return messages.map(m => m.role)") == ["user", "assistant"]
    assert page.execute_script("return messages[0].content") == "Hello!"
    assert len(page.find_elements("css selector", ".turn")) == 2


# Answers with the events of `replies`, each [milliseconds on the clock, tokens so far].
STUB = """
let clock = 0;
performance.now = () => clock;
fetch = async () => {
  const replies = arguments0.slice();
  const pull = (sink) => {
    if (!replies.length) return sink.close();
    const [ms, tokens] = replies.shift();
    clock = ms;
    const event = {usage: {completion_tokens: tokens, total_tokens: tokens}, choices: [{delta: {content: "x"}}]};
    sink.enqueue(new TextEncoder().encode("data: " + JSON.stringify(event) + "\\n\\n"));
  };
  return new Response(new ReadableStream({pull}, {highWaterMark: 0}));
};
"""


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
    page.execute_script(STUB.replace("arguments0", json.dumps(replies)))
    say(page, "Hello")
    until(lambda: answers(page) and answers(page)[-1].text.startswith("x" * len(replies)) and is_idle(page))
    assert page.find_element("id", "speed").text == speed


def test_after_an_error_the_typed_text_is_there(page):
    set_value(page, "temperature", -1)
    say(page, "A long question")
    until(lambda: page.find_elements("css selector", ".error"))
    assert page.find_element("id", "text").get_attribute("value") == "A long question"
    assert page.execute_script("return messages.length") == 0
    set_value(page, "temperature", 0)
    set_value(page, "max_tokens", 5)
    say(page, "?")
    until(lambda: page.execute_script("return messages.length") == 2 and is_idle(page))
    assert page.execute_script("return messages[0].content") == "A long question?"
    assert [turn.text for turn in page.find_elements("css selector", ".turn.user")] == ["A long question?"]


def test_results_of_tools_survive_an_error(page):
    set_value(page, "temperature", 0)
    set_value(page, "max_tokens", 80)
    set_value(page, "tools", json.dumps(TOOLS))
    say(page, "What is the weather in Paris?")
    until(lambda: page.find_elements("css selector", ".call form"))
    set_value(page, "temperature", -1)
    page.switch_to.active_element.send_keys('{"temperature": 21}\ue007')
    until(lambda: page.find_elements("css selector", ".error"))
    set_value(page, "temperature", 0)
    page.find_element("css selector", ".turn.assistant > button").click()
    until(lambda: page.execute_script("return messages.length") == 4 and is_idle(page))
    roles = page.execute_script("return messages.map(m => m.role)")
    assert roles == ["user", "assistant", "tool", "assistant"] and not page.find_elements("css selector", ".error")


def test_tool_calls_are_shown_as_calls(page):
    set_value(page, "temperature", 0)
    set_value(page, "max_tokens", 80)
    set_value(page, "tools", json.dumps(TOOLS))
    say(page, "What is the weather in Paris?")
    until(lambda: page.find_elements("css selector", ".call form"))
    card = page.find_element("css selector", ".call")
    assert "get_weather" in card.text and '"city": "Paris"' in card.text
    page.switch_to.active_element.send_keys('{"temperature": 21}\ue007')  # the focus is where the result goes
    until(lambda: len(answers(page)) == 2 and is_idle(page))
    assert page.find_element("css selector", ".turn.tool").text.startswith("get_weather → ")
    roles = page.execute_script("return messages.map(m => m.role)")
    assert roles == ["user", "assistant", "tool", "assistant"] and answers(page)[1].text


def test_mistakes_are_told(page):
    set_value(page, "tools", "[{")
    say(page, "Hello")
    until(lambda: page.find_elements("css selector", ".error"))
    assert "JSON" in page.find_element("css selector", ".error").text
    set_value(page, "tools", "")
    set_value(page, "temperature", -1)
    say(page, "Hello")
    until(lambda: len(page.find_elements("css selector", ".error")) == 2)
    assert "temperature" in page.find_elements("css selector", ".error")[1].text


def test_what_the_model_writes_is_text(page):
    page.execute_script("addTurn('assistant', '<img src=x onerror=document.title=1>')")
    assert page.find_elements("css selector", ".turn img") == [] and page.title == "longcat playground"


def test_light_dark_and_phone(page):
    set_value(page, "max_tokens", 80)
    say(page, "Tell me a story about a dog.")
    until(lambda: answers(page) and is_idle(page))
    set_value(page, "tools", json.dumps(TOOLS, indent=1))
    say(page, "What is the weather in Paris?")
    until(lambda: page.find_elements("css selector", ".call form") and is_idle(page))
    backs = {}
    for name, width, height, scheme in [
        ("light", 1200, 800, "light"), ("dark", 1200, 800, "dark"),
        ("phone-light", 390, 780, "light"), ("phone-dark", 390, 780, "dark"),
    ]:  # fmt: skip
        as_seen(page, width, height, scheme)
        look(page, name)
        backs[name] = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), name
        send = page.find_element("id", "send").rect
        assert send["x"] + send["width"] <= width and send["y"] + send["height"] <= height, name
    assert backs["light"] == backs["phone-light"] != backs["dark"]
    assert not page.find_element("id", "settings").is_displayed()
    page.find_element("id", "menu").click()
    assert page.find_element("id", "settings").is_displayed()
    look(page, "phone-settings")
    page.switch_to.active_element.send_keys("\ue00c")
    assert not page.find_element("id", "settings").is_displayed()
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_key_is_asked_for(browser, tiny):
    with LiveServer(tiny, "--api-key", "secret") as server:
        browser.get(server.url + "/")
        until(lambda: "API key" in browser.find_element("id", "model").text)
        browser.find_element("id", "key").send_keys("secret\t")
        until(lambda: browser.find_element("id", "model").text == "longcat-tiny")


def test_everything_comes_from_the_server(page, server):
    urls = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in page.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert urls and all(url.startswith(("http://127.0.0.1:", "data:")) for url in urls)
    severe = [
        entry
        for entry in page.get_log("browser")
        if entry["level"] == "SEVERE" and "status of 40" not in entry["message"]
    ]
    assert not severe
