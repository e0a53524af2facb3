"""The playground in headless Chromium: chats, answers, settings, tools, keyboard, languages, and how it looks.

LONGCAT_SCREENSHOTS=FOLDER keeps the pictures.
"""

import json
import os
import shutil

import pytest

from support.live import LiveServer, until

try:
    from selenium import webdriver
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.expected_conditions import alert_is_present
    from selenium.webdriver.support.wait import WebDriverWait
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


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.set_script_timeout(10)
        yield driver


@pytest.fixture
def page(browser, server):
    """The page as a browser shows it that was never there."""
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "all"})
    browser.get(server.url + "/")
    until(lambda: text_of(browser, "#model") == "longcat-tiny")
    return browser


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


# --- answers -------------------------------------------------------------------------------------------------------


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


# --- markdown ------------------------------------------------------------------------------------------------------

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


def test_markdown_is_rendered(page):
    model_says(page, [event(MARKDOWN, "stop")])
    ask(page, "Squares?")
    assert rendered(page, "h1")[0].text == "Squares"
    assert [cell.text for cell in rendered(page, "td")] == ["2", "4", "3", "9"]
    assert {cell.value_of_css_property("text-align") for cell in every(page, "td.right")} == {"right"}
    assert len(rendered(page, "math")) == 3 and every(page, ".markup mfrac") and every(page, "math[display=block]")
    keyword = rendered(page, "pre .k")[0]
    assert keyword.text == "def" and keyword.value_of_css_property("color") != one(page, "pre").value_of_css_property(
        "color"
    )
    link = rendered(page, "a")[0]
    assert (
        link.get_attribute("href") == "https://example.org/manual"
        and link.get_attribute("rel") == "noopener noreferrer"
    )
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    press(page, "Copy", ".code-block")
    until(lambda: text_of(page, ".code-block button") == "Copied")
    text = page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert text.startswith("def area(side") and text.rstrip().endswith("# of a square")


# Each would set document.title, or ask another server.
HOSTILE = [
    "<img src=x onerror=document.title=1>",
    "<script>document.title=1</script>",
    "<svg onload=document.title=1><a xlink:href=javascript:document.title=1><text>x</text></a></svg>",
    "[x](javascript:document.title=1) [x](JaVaScRiPt:document.title=1) [x](&#106;avascript:document.title=1)",
    "[x](data:text/html,<script>document.title=1</script>) ![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "![x](https://example.org/x.png) <https://example.org/'onclick='document.title=1>",
    "$\\text{<img src=x onerror=document.title=1>}$ $\\href{javascript:document.title=1}{x}$ $\\style{x:y}{z}$",
    '```"><img src=x onerror=document.title=1>\n<img src=x onerror=document.title=1>\n```',
    "`<img src=x onerror=document.title=1>` <iframe src=javascript:document.title=1></iframe>",
    "<math><mtext><table><mglyph><style><img src=x onerror=document.title=1></style></mglyph></table></mtext></math>",
]
# As if the server had let it through.
HOSTILE_HTML = [
    *HOSTILE,
    "<a href='javascript:document.title=1' onclick='document.title=1' style='position:fixed'>x</a>",
    "<a href='&#x01;javascript:document.title=1'>x</a><a href=' javascript:document.title=1'>x</a>",
    "<math><mi href='javascript:document.title=1' style='x' onclick='document.title=1'>x</mi><script>1</script></math>",
    "<math><annotation-xml encoding='text/html'><img src=x onerror=document.title=1></annotation-xml></math>",
    "<svg><style><img src=x onerror=document.title=1></style></svg><svg><foreignObject><iframe></iframe></svg>",
    "<form action=//example.org><input name=x><button>x</button></form><base href=//example.org>",
    "<link rel=stylesheet href=//example.org>",
    "<noscript><p title='</noscript><img src=x onerror=document.title=1>'></noscript><template><img src=x></template>",
    "<span class='x y' id=problem name=x>x</span><code class='a\" onload=1'>x</code><ol start='1;x'><li>x</ol>",
]
ALLOWED = {"href", "class", "start", "display", "tabindex", "target", "rel", "xmlns", "type", "mathvariant"}


def test_hostile_text_stays_text(page):
    model_says(page, [event("\n\n".join(HOSTILE), "stop")])
    ask(page, "Attack")
    until(lambda: rendered(page, "pre"))
    page.execute_script(
        "const probe = Object.assign(document.createElement('div'), {id: 'probe', className: 'markup'});"
        "document.getElementById('log').append(probe)"
    )
    for text in HOSTILE_HTML:
        in_page(page, f"document.getElementById('probe').append(...markup.safeNodes({json.dumps(text)}))")
    found = page.execute_script(
        "return [...document.querySelectorAll('.markup *')].map(one => [one.localName, "
        "...[...one.attributes].map(({name, value}) => `${name}=${value}`)])"
    )
    assert len(found) > 30
    for name, *attributes in found:
        assert name not in (
            "img",
            "script",
            "svg",
            "iframe",
            "style",
            "form",
            "input",
            "base",
            "link",
            "object",
            "embed",
            "template",
        )
        for attribute in attributes:
            key, _, value = attribute.partition("=")
            assert key in ALLOWED and "script" not in value and not key.startswith("on"), (name, attribute)
            assert key != "href" or value.startswith(("https://", "mailto:")), attribute
    assert page.title == "longcat playground"
    page.get_log("browser")  # the parser tells of handlers that the policy blocks


def test_scripts_of_a_text_would_not_run_either(page):
    """The policy holds even where the list of elements would not."""
    trusted = page.execute_script(
        "try { document.body.innerHTML = '<img src=x onerror=document.title=1>'; } catch { return 'no' }"
    )
    assert trusted == "no"
    page.execute_script(
        "const made = document.createElement('a'); made.href = 'javascript:document.title = 1';"
        "document.body.append(made); made.click(); made.remove()"
    )
    assert page.title == "longcat playground"
    page.get_log("browser")  # which tells of the two


def test_a_growing_text_is_rendered_ten_times_a_second_at_most(page):
    model_says(page, [piece for n in range(60) for piece in (event(f"word{n} **bold** "), 20)] + [event("", "stop")])
    page.execute_script(
        "window.times = []; const stub = fetch;"
        "fetch = (path, options) => { if (path === 'render') times.push(Date.now()); return stub(path, options); }"
    )
    ask(page, "Write")
    until(lambda: len(every(page, ".markup strong")) == 60)
    times = page.execute_script("return times")
    assert 3 <= len(times) and all(b - a >= 95 for a, b in zip(times, times[1:-1], strict=False)), times


# --- chats ---------------------------------------------------------------------------------------------------------


def titles(page):
    return texts(page, "#chat-list .open")


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


# --- settings ------------------------------------------------------------------------------------------------------


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
    webdriver.ActionChains(page).move_to_element(tokens[2]).perform()
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


# --- files and tools -----------------------------------------------------------------------------------------------


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


# --- problems ------------------------------------------------------------------------------------------------------


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


# --- people --------------------------------------------------------------------------------------------------------


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
