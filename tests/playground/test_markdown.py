"""Markdown, code and formulas on the page, and what hostile text cannot do there."""

import json

from support.browser import (
    MARKDOWN,
    ask,
    event,
    every,
    in_page,
    model_says,
    needs_browser,
    one,
    press,
    rendered,
    text_of,
)
from support.live import until

pytestmark = needs_browser


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
