"""A headless Chromium that shows the server's page: what tests do there, and what they see.

LONGCAT_SCREENSHOTS=FOLDER keeps the pictures.
"""

import os
import shutil

import pytest

from support.live import until

try:
    from selenium import webdriver
    from selenium.webdriver.common.keys import Keys
except ImportError:  # needs_browser skips the tests
    webdriver = Keys = None

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER and webdriver),
        reason="needs Chromium (apt-get install chromium chromium-driver) and the extra `server-test`",
    ),
]
FLAGS = "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --window-size=1280,800 --lang=en-US".split()

# What the model of a test answers with, in place of the server's. window.replies has lists of events, one for each
# request, and window.asked gets the bodies. An event may be a number, the milliseconds until the next, or "cut".
STUB = """
window.asked = [], window.replies = arguments[0], window.plain ??= fetch;
fetch = async (path, options) => {
  if (!path.endsWith("chat/completions")) return plain(path, options);
  asked.push(JSON.parse(options.body));
  const events = replies.shift();
  if (!Array.isArray(events)) return new Response(JSON.stringify({error: events}), {status: events.status});
  const left = new DOMException("", "AbortError");
  const start = (sink) => options.signal.addEventListener("abort", () => sink.error(left));
  const pull = async (sink) => {
    if (options.signal.aborted) return;
    if (!events.length) return sink.close();
    const event = events.shift();
    if (typeof event === "number") return new Promise(wake => setTimeout(() => wake(pull(sink)), event));
    if (event === "cut") return sink.error(new TypeError("network error"));
    if (event.clock !== undefined) performance.now = () => event.clock;
    sink.enqueue(new TextEncoder().encode("data: " + JSON.stringify(event) + "\\n\\n"));
  };
  return new Response(new ReadableStream({start, pull}, {highWaterMark: 0}));
};
"""

# All that the page renders.
MARKDOWN = """# Squares

The **area** of a square with side $a$ is $a^2$, and

$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$

| side | area |
| :--- | ---: |
| 2 | 4 |
| 3 | 9 |

```python
def area(side: float) -> float:
    return side**2  # of a square
```

1. Read [the manual](https://example.org/manual).
2. Ask `area(3)`.
"""


def started_browser():
    """Chromium, for a with-statement."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def model_says(page, *replies):
    """Stands in for the model. A reply is a list of events, or an error of the server."""
    page.execute_script(STUB, list(replies))


def event(text="", reason=None, **more):
    """An event of a stream. more: of the delta, or `logprobs`, `usage`, `clock`."""
    others = {name: more.pop(name) for name in ("usage", "clock") if name in more}
    choice = {"logprobs": more.pop("logprobs", None), "delta": {"content": text, **more}, "finish_reason": reason}
    return {"choices": [choice], **others}


def call_event(name="get_weather", arguments='{"city": "Paris"}', id="call_1"):
    call = {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return event("", "tool_calls", tool_calls=[call])


def asked(page, index=-1):
    return page.execute_script("return asked.at(arguments[0])", index)


def in_page(page, code):
    """The value of JavaScript that uses the page's own modules: store, conversation and markup."""
    return page.execute_async_script(
        "const give = arguments[0]; Promise.all(['data/store', 'data/conversation', 'view/markup'].map("
        "name => import(`/page/${name}.js`))).then(async ([store, conversation, markup]) => {"
        f"give(await (async () => {{ {code} }})()); }}).catch(error => give(String(error)));"
    )


def stored(page):
    """All chats of the browser, the newest first, each as its messages."""
    return in_page(
        page, "return (await store.allChats()).map(chat => conversation.messages(chat, conversation.path(chat).at(-1)))"
    )


def one(page, selector):
    return page.find_element("css selector", selector)


def every(page, selector):
    return page.find_elements("css selector", selector)


def set_value(page, name, value):
    page.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, str(value))


def texts(page, selector):
    """What people see of all elements, read at one time: the page may replace them meanwhile."""
    code = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText.trim())"
    return page.execute_script(code, selector)


def text_of(page, selector):
    return "\n".join(texts(page, selector))


def has_focus(page, selector):
    return page.execute_script("return document.activeElement.matches(arguments[0])", selector)


def press(page, label, within="body"):
    """Clicks the last button with these words or this label."""
    code = """
    const found = [...document.querySelectorAll(`${arguments[1]} button`)].filter(one => one.offsetParent
      && [one.innerText.trim(), one.getAttribute("aria-label")].includes(arguments[0])).at(-1);
    found?.click();
    return found !== undefined;
    """
    assert page.execute_script(code, label, within), f"no button {label}"


def type_keys(page, keys, *held):
    actions = webdriver.ActionChains(page)
    for key in held:
        actions.key_down(key)
    actions.send_keys(keys)
    for key in held:
        actions.key_up(key)
    actions.perform()


def say(page, text):
    page.find_element("id", "text").send_keys(text + Keys.ENTER)


def answers(page):
    return texts(page, ".turn.assistant")


def is_idle(page):
    return page.execute_script("return !document.getElementById('send').hidden")


def ask(page, text, number=1):
    """Sends a message and waits for the answer, which is the chat's answer of this number."""
    say(page, text)
    until(lambda: len(answers(page)) == number and is_idle(page))


def rendered(page, selector):
    until(lambda: every(page, f".markup {selector}"))
    return every(page, f".markup {selector}")


def problem(page):
    until(lambda: text_of(page, "#problem"))
    return text_of(page, "#problem")


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


def titles(page):
    return texts(page, "#chat-list .open")


def point_at(element):
    webdriver.ActionChains(element.parent).move_to_element(element).perform()
