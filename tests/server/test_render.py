"""POST /render and the files of the page: what markdown becomes, what stays text, and the limits."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from longcat.server.api.playground import markdown, routes
from longcat.support.worker import JobFailed, Limits, Pool

FOLDER = Path(routes.__file__).with_name("files")
MOST_BYTES = 150_000  # of the whole page


@pytest.fixture(scope="module")
def parser():
    return markdown.parser()


def render(server, text, **options):
    return httpx.post(server.url + "/render", json={"text": text}, timeout=60, **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b** ~~c~~", "<p>a <strong>b</strong> <s>c</s></p>\n"),
        ("| a |\n|:-:|\n| b |", '<th class="center">a</th>'),
        ("```python\nif x: pass\n```", '<code class="language-python"><span class="k">if</span>'),
        ("```nonsense\n<b>\n```", '<code class="language-nonsense">&lt;b&gt;\n</code>'),
        ("[a](https://b.c/d?e=f&g)", '<a href="https://b.c/d?e=f&amp;g">a</a>'),
        ("[a](mailto:b@c.d)", '<a href="mailto:b@c.d">a</a>'),
        ("$a^2$", "<msup><mi>a</mi><mn>2</mn></msup>"),
        ("\\(a\\) and \\[b\\]", 'display="inline"><mrow><mi>a</mi>'),
        ("$$\na \\\\ b\n$$", 'display="block"'),
        ("- $$\n  a\n  $$", 'display="block"'),
        ("$\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}$", "<mtd><mn>4</mn></mtd>"),
        ("It costs $5 or $6, and $ 7 $.", "<p>It costs $5 or $6, and $ 7 $.</p>\n"),
        ("`$a$` \\$a$", "<p><code>$a$</code> $a$</p>\n"),
        ("$$ never closed", "<p>$$ never closed</p>\n"),
        ("$x^$", '<code class="formula">x^</code>'),
        ("$" + "{" * 500 + "}" * 500 + "$", '<code class="formula">{{{'),
        ("```python\nopen", '<span class="nb">open</span>'),  # a text that is still being written
        ("", ""),
    ],
)
def test_markdown(parser, text, expected):
    assert expected in markdown.to_html(parser, text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "<img src=x onerror=y>",
        "a <b onclick=x> &lt;script> c",
        "[x](javascript:y) [x](JAVASCRIPT:y) [x](&#106;avascript:y) [x](java&Tab;script:y) [x](vbscript:y)",
        "[x](data:text/html,y) [x](/v1/models) [x](//example.org) [x](file:///etc/passwd)",
        "[x]: javascript:y\n\n[x]",
        "<javascript:y> <data:text/html,y>",
        "![x](https://example.org/x.png) ![x](data:image/png;base64,x)",
        "$\\text{<script>x</script>}$ $\\text{&lt;img src=x>}$ $\\mathrm{<svg onload=x>}$",
        "$\\href{javascript:x}{y}$ $\\href{https://x.y}{z}$ $\\style{color:red}{x}$ $\\class{x}{y}$",
        '$\\color{red" onclick="x}y$ $\\fcolorbox{"><script>}{x}{y}$',
        "$\\newcommand{\\a}{<img src=x onerror=y>}\\a$",
        '```"><script>\nx\n```',
        "```html\n<script>x</script>\n```",
        "`<script>`",
        "| <script> |\n| - |\n| <img src=x> |",
        "<math><mi href=javascript:x>y</mi></math> <svg onload=x>",
        "<!-- x --> <![CDATA[x]]> <?php x ?>",
    ],
)
def test_hostile_text_is_escaped(parser, text):
    html = markdown.to_html(parser, text)
    tags = re.findall(r"<([^>]*)>", html)
    assert "<" not in re.sub(r"</?[a-z][^<>]*>", "", html)
    for tag in tags:
        name, *_ = tag.lstrip("/").split()
        assert name not in ("script", "img", "svg", "iframe", "style", "b"), html
        assert not re.search(r"\s(on\w+|style|href=\"(?!https://|mailto:))", tag), html


def test_answers_and_refusals(server):
    answer = render(server, "**a**")
    assert answer.json() == {"html": "<p><strong>a</strong></p>\n"}
    long = "word " * 5000  # which another worker parses
    assert render(server, long).json() == {"html": f"<p>{long.strip()}</p>\n"}
    for text, words in (
        ("x" * (routes.MAX_RENDER_CHARS + 1), "at most 65536"),
        (5, "expected a text"),
        (None, "text is null"),
    ):
        refused = render(server, text)
        assert refused.status_code == 400 and words in refused.json()["error"]["message"]


def test_half_a_character_is_rendered(server):
    answer = httpx.post(server.url + "/render", content=b'{"text": "\xf0\x9f\x98\x80 \\u0000"}', timeout=60)
    assert answer.status_code == 200 and "\N{GRINNING FACE}" in answer.json()["html"]


def test_a_text_that_takes_too_long_ends_alone(server):
    slow = "```perl\n" + "m{" * 16000 + "\n```\n"  # each looks for its end
    with ThreadPoolExecutor() as threads, httpx.Client(base_url=server.url, timeout=60) as client:
        refused = threads.submit(render, server, slow)
        assert client.get("/health").status_code == 200 and not refused.done()
        assert refused.result().status_code == 413
        assert "takes more than 2 s to render" in refused.result().json()["error"]["message"]
        assert client.post("/render", json={"text": "a"}).json() == {"html": "<p>a</p>\n"}


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(0.05, 64 << 20, 20.0), "time"), (Limits(20.0, 1 << 20, 60.0), "memory")],
)
def test_limits_of_the_worker(limits, reason):
    pool = Pool("longcat.server.api.playground.markdown", {}, 1)
    try:
        with pytest.raises(JobFailed, match=reason):
            pool.call(b"a **b** $c$ [d](https://e.f) `g`\n\n" * 1500, limits)
        assert pool.call(b"a", routes.RENDER_LIMITS) == b"<p>a</p>\n"
    finally:
        pool.close()


def test_files_of_the_page(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        files_are_sent(client)


def files_are_sent(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    size, etags = 0, {}
    for name in names:
        answer = client.get(f"/page/{name}")
        size += len(answer.content)
        etags[name] = answer.headers["etag"]
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff", name
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        for wanted in re.findall(r'(?:src|href)="page/([^"]+)"|from "(\./[^"]+|\.\./[^"]+)"', answer.text):
            path = (FOLDER / name).parent / wanted[1] if wanted[1] else FOLDER / wanted[0]
            assert path.is_file(), (name, wanted)
        assert not re.search(r"https?://(?!www\.w3\.org)[a-z]", answer.text.replace("/^(https?:", "")), name
    assert client.get("/page/main.js", headers={"If-None-Match": etags["main.js"]}).status_code == 304
    assert size < MOST_BYTES
    for text in (page.text, client.get("/docs").text):
        assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", text)
    for path in ("/page/", "/page/nothing.js", "/page/../routes.py", "/page/%2e%2e/routes.py", "/page//etc/passwd"):
        assert client.get(path).status_code == 404


def test_both_languages_have_all_words():
    english, chinese = (
        dict(re.findall(r"^  (\w+): (\".*\"),$", (FOLDER / "words" / f"{name}.js").read_text(), re.MULTILINE))
        for name in ("en", "zh")
    )
    assert len(english) > 100 and english.keys() == chinese.keys()
    for word, text in english.items():
        assert set(re.findall(r"\{\d\}", text)) == set(re.findall(r"\{\d\}", chinese[word])), word
    sources = "".join(path.read_text() for path in FOLDER.rglob("*") if path.suffix in (".js", ".html"))
    used = set(re.findall(r'(?:say|button)\("(\w+)"', sources)) | set(
        re.findall(r'data-(?:text|label|hint)="(\w+)"', sources)
    )
    assert used <= english.keys()
    assert not [
        word for word in english if not re.search(rf'["`]{word}["`]|ended_|{word.removesuffix("Help")}"', sources)
    ]


def test_defaults_of_sampling(server):
    params = httpx.get(server.url + "/props", timeout=60).json()["default_generation_settings"]["params"]
    assert params["temperature"] == pytest.approx(0.7) and params["top_k"] == 4 and params["min_p"] == 0
