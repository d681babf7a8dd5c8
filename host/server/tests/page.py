"""Drives the page of a running server through headless Chromium.

    python3 page.py http://127.0.0.1:8080/ /usr/bin/chromium [FOLDER FOR SCREENSHOTS]

The server serves the bundled model and needs no key. Needs the package `playwright`. Prints a line for each check and ends with 1 if one
failed.
"""

import json
import pathlib
import re
import sys
import tempfile
from urllib.parse import urlsplit

from playwright.sync_api import TimeoutError as TooLong
from playwright.sync_api import sync_playwright

PROMPT = "My fellow citizens, the state of our nation"
HOSTILE = """# Title <b>bold</b>
<img src=x onerror="window.pwned=1"><script>window.pwned=2</script>
[one](javascript:window.pwned=3) [two](data:text/html,<script>1</script>) [three](https://example.org/a_b) ![four](https://example.org/i.png)
<a href="javascript:window.pwned=4">five</a> [six](JaVaScRiPt:window.pwned=5) **bold** `code`

- first
- second

```html
<img src=x onerror="window.pwned=6">
```

| a | b |
|---|---|
| 1 | <img src=x onerror="window.pwned=7"> |
"""
SCHEMA = {
    "type": "object",
    "properties": {"year": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "required": ["year"],
    "additionalProperties": False,
}
# Colours that texts have, and what lies behind them.
PAIRS = [(text, ground) for text in ("text", "soft", "main", "error") for ground in ("ground", "surface", "tint")]
PAIRS += [("on-main", "main"), ("other", "ground")]

passed = failed = 0


def check(name, fine, seen=""):
    global passed, failed
    passed, failed = passed + bool(fine), failed + (not fine)
    print(f"ok      {name}" if fine else f"FAILED  {name}: {seen!r}", flush=True)


def sse(text):
    """A streamed answer of this text."""
    parts = [{"choices": [{"index": 0, "delta": {"content": text[i : i + 7]}}]} for i in range(0, len(text), 7)]
    parts.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    parts.append({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": len(parts)}})
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"


class Driver:
    """One browser context with a page, and what went wrong in it."""

    def __init__(self, browser, url, **options):
        self.host, self.touch = urlsplit(url).netloc, options.get("has_touch", False)
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(20_000)
        self.foreign, self.errors = [], []
        self.page = self.context.new_page()
        self.page.on("request", lambda it: urlsplit(it.url).netloc not in (self.host, "") and self.foreign.append(it.url))
        self.page.on("console", lambda it: it.type in ("error", "warning") and self.errors.append(it.text))
        self.page.on("pageerror", lambda it: self.errors.append(str(it)))
        self.page.add_init_script("window.violations = []; addEventListener('securitypolicyviolation', (it) => violations.push(it.violatedDirective))")
        self.response = self.page.goto(url)

    def setting(self, name, value):
        self.page.keyboard.press("Alt+KeyS")
        field = self.page.locator(f"#{name}")
        field.select_option(value) if name == "format" else field.fill(value)
        self.page.keyboard.press("Escape")

    def send(self, text, wait=True):
        self.page.fill("#input", text)
        # On touch screens Enter begins a line.
        self.page.click("#send") if self.touch else self.page.press("#input", "Enter")
        if wait:
            self.idle()

    def idle(self):
        self.page.locator("#stop").wait_for(state="hidden")

    def answer(self, text):
        """From now on the server answers this text."""
        self.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=sse(text)))

    def last(self, part=".text"):
        return self.page.locator("article.answer").last.locator(part).inner_text()

    def articles(self):
        return self.page.locator("article").count()

    def clean(self, where):
        """Nothing came from elsewhere, nothing was forbidden, nothing failed."""
        check(f"{where}: no request to another host", not self.foreign, self.foreign)
        check(f"{where}: no error in the console", not self.errors, self.errors)
        violations = self.page.evaluate("violations")
        check(f"{where}: no violation of the security policy", not violations, violations)

    def fits(self, where):
        wide = self.page.evaluate("""Array.from(document.querySelectorAll('html, #scroll, nav, aside, dialog[open]'))
            .filter((it) => it.scrollWidth > it.clientWidth).map((it) => [it.id || it.nodeName, it.scrollWidth, it.clientWidth])""")
        check(f"{where}: no horizontal scrolling", not wide, wide)


def chat(browser, url):
    d = Driver(browser, url)
    page = d.page
    policy = d.response.headers.get("content-security-policy", "")
    check("the security policy is strict", "default-src 'none'" in policy and "unsafe" not in policy and "trusted-types" in policy, policy)
    page.locator("#note").wait_for()
    check("a model without a template is explained", "continues your text" in page.inner_text("#note"), page.inner_text("#note"))
    page.click("#note button")
    check("the message field has the focus", page.evaluate("document.activeElement.id") == "input")

    d.setting("max_tokens", "400")
    d.setting("seed", "7")
    d.send(PROMPT)
    first = d.last()
    check("there is an answer", len(first) > 100, first)
    facts = d.last(".facts")
    check("speed and length are shown", re.search(r"tokens/s · 400 tokens", facts), facts)
    spoken = page.locator("#spoken").text_content()
    check("the answer is read out", spoken.strip()[-20:] in " ".join(first.split()) and len(spoken) > 100, spoken[-40:])
    label = page.locator("#stateChart").get_attribute("aria-label")
    check("memory is drawn", page.locator("#stateChart polyline").count() == 2 and re.search(r"After 4\d\d tokens the state takes .*KiB", label), label)
    check("the cache for comparison is said to be computed", "computed, not measured: 2 ×" in page.inner_text("#formula"), page.inner_text("#formula"))

    page.keyboard.press("Alt+KeyR")
    d.idle()
    facts = d.last(".facts")
    found = re.search(r"prompt (\d+): (\d+) cached, (\d+) read", facts)
    check("the prompt is not read again for another answer", found and int(found[3]) <= 1, facts)
    check("retrying makes a second version", "2/2" in d.last(".branches"), d.last(".branches"))
    check("the same seed gives the same text", d.last() == first)
    # Its text has the tokens that were generated, so that the next turn goes on from there.
    d.setting("seed", "20")
    page.get_by_role("button", name="Generate another answer").click()
    d.idle()
    third = d.last()
    check("another seed gives another text", third != first and "3/3" in d.last(".branches"))
    page.get_by_role("button", name="Previous version").click()
    page.get_by_role("button", name="Previous version").click()
    check("‹ goes back", d.last() == first and "1/3" in d.last(".branches"), d.last(".branches"))
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Alt+ArrowDown")
    check("Alt+↓ goes on", d.last() == third and "3/3" in d.last(".branches"), d.last(".branches"))

    d.send("I therefore ask the Congress")
    facts = d.last(".facts")
    found = re.search(r"prompt (\d+): (\d+) cached, (\d+) read", facts)
    check("the second turn reads only what is new", found and int(found[1]) > 400 and int(found[3]) < 30, facts)
    second = d.last()

    page.keyboard.press("Alt+KeyE")
    page.locator(".edit textarea").fill("I therefore refuse")
    page.locator(".edit textarea").press("Enter")
    d.idle()
    own = page.locator("article.own").last
    check("editing makes a version of the question", "I therefore refuse" in own.inner_text() and "2/2" in own.inner_text(), own.inner_text())
    page.keyboard.press("Alt+ArrowUp")
    check("the earlier question keeps its answer", d.last() == second and "I therefore ask" in own.inner_text())

    page.keyboard.press("Alt+KeyU")
    check("undo takes a turn back", d.articles() == 2 and page.input_value("#input") == "I therefore ask the Congress", d.articles())
    page.keyboard.press("Alt+KeyY")
    check("redo brings the same turn again", d.last() == second and page.input_value("#input") == "", d.articles())

    page.get_by_role("button", name="Continue this text").click()
    d.idle()
    check("a text is continued", d.articles() == 5 and len(d.last()) > 100, d.articles())

    d.setting("max_tokens", "100000")
    d.send("And now", wait=False)
    page.locator("[aria-busy] .text p").first.wait_for()
    before, growing = len(d.last()), page.locator("[aria-busy]").count()
    for _ in range(200):
        if len(d.last()) > before:
            break
        page.wait_for_timeout(50)
    grown = len(d.last()) > before and page.locator("[aria-busy]").count() == growing == 1
    check("the text grows while it is generated", grown, before)
    page.keyboard.press("Escape")
    d.idle()
    check("Esc stops", "stopped" in d.last(".facts"), d.last(".facts"))
    d.send("And then", wait=False)
    page.locator("[aria-busy] .text p").first.wait_for()
    page.click("#stop")
    d.idle()
    check("the button stops", "stopped" in d.last(".facts"), d.last(".facts"))
    kept = page.inner_text("#messages")

    page.reload()
    page.locator("article.answer").first.wait_for()
    page.locator("#modelName:not(:empty)").wait_for()
    check("the conversation survives a reload", page.inner_text("#messages") == kept)
    check("the explanation comes only once", page.locator("#note").is_hidden())

    page.keyboard.press("Alt+KeyN")
    d.setting("max_tokens", "200")
    d.setting("format", "json_schema")
    page.keyboard.press("Alt+KeyS")
    page.fill("#schema", "{oops")
    check("a wrong schema is said", "not a JSON schema" in page.inner_text("#schemaError"), page.inner_text("#schemaError"))
    page.fill("#schema", json.dumps(SCHEMA))
    check("a right one is taken", page.locator("#schemaError").is_hidden())
    page.keyboard.press("Escape")
    d.send("In the year")
    try:
        answer = json.loads(page.locator("article.answer code").inner_text())
        check("the answer follows the schema", list(answer) == ["year"] and isinstance(answer["year"], int), answer)
    except ValueError as error:
        check("the answer follows the schema", False, f"{error}: {d.last()}")
    d.setting("format", "")

    check("both conversations are listed", page.locator("#chats li").count() == 2, page.inner_text("#chats"))
    with page.expect_download() as download, tempfile.TemporaryDirectory() as folder:
        page.click("#exportButton")
        file = pathlib.Path(folder) / "chats.json"
        download.value.save_as(file)
        exported = json.loads(file.read_text())
        check("the export holds both and no key", len(exported["conversations"]) == 2 and set(exported) == {"elapid", "conversations"})
        for _ in range(2):
            page.locator("#chats .plain").first.click()
        check("conversations are deleted", page.locator("#chats li").count() == 0)
        page.click("#status button")
        check("deleting can be undone", page.locator("#chats li").count() == 1)
        page.set_input_files("#importFile", file)
        page.locator("#status", has_text="2 conversations were imported").wait_for()
        check("conversations are imported", page.locator("#chats li").count() == 3)
        for text, said in (("{", "not JSON"), ('{"elapid":1,"conversations":[{"title":"x","nodes":[{"parent":0,"next":0,"role":"root","content":""}]}]}', "damaged")):
            file.write_text(text)
            page.set_input_files("#importFile", file)
            page.locator("#status", has_text=said).wait_for()
            check(f"a bad file is refused: {said}", "can't be imported" in page.inner_text("#status"), page.inner_text("#status"))
    page.locator("#chats .title", has_text="My fellow").first.click()
    check("an imported conversation is whole", page.inner_text("#messages") == kept)
    d.clean("chat")
    # A canary: what is watched for is seen.
    page.evaluate("() => new Promise((done) => { const image = new Image(); image.onerror = done; image.src = 'http://example.org/x.png'; })")
    check("a forbidden image would have been noticed", page.evaluate("violations.length") == 1 and len(d.errors) > 0)
    try:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<i></i>')")
        check("text can't become markup", False, "insertAdjacentHTML worked")
    except Exception as error:  # noqa: BLE001: the browser's own error
        check("text can't become markup", "TrustedHTML" in str(error), str(error))
    d.context.close()


def hostile(browser, url):
    d = Driver(browser, url)
    page = d.page
    page.locator("#note button").click()
    d.answer(HOSTILE)
    d.send("Show me")
    made = page.evaluate("Array.from(document.querySelectorAll('#messages img, #messages script, #messages b'), (it) => it.outerHTML)")
    check("no element comes from an answer's HTML", not made, made)
    links = page.evaluate("Array.from(document.querySelectorAll('#messages a'), (it) => [it.href, it.rel, it.target])")
    check("only http and https links are links", [it[0] for it in links] == ["https://example.org/a_b", "https://example.org/i.png"], links)
    check("links open apart and give nothing away", all("noopener" in it[1] and it[2] == "_blank" for it in links), links)
    check("links show where they lead", "three (example.org)" in d.last(), d.last())
    check("HTML is shown as it was written", '<img src=x onerror="window.pwned=1">' in d.last(), d.last())
    check("nothing ran", page.evaluate("window.pwned === undefined"))
    counts = page.evaluate("['h3', 'strong', ':not(pre) > code', 'li', 'pre', 'td'].map((name) => document.querySelectorAll('#messages ' + name).length)")
    check("Markdown is rendered", counts == [1, 1, 1, 2, 1, 2], counts)
    deep = "> " * 500 + "*" * 3000 + "[" * 3000 + "`" * 999 + "_a " * 3000 + "\n" + " " * 30_000 + "|\n" + "|" * 3000 + "- " * 2000
    page.unroute("**/v1/chat/completions")
    d.answer(deep)
    d.send("Deep")
    check("an absurd answer is shown", len(d.last()) > 3000, len(d.last()))
    d.clean("hostile answers")
    d.context.close()


def errors(browser, url):
    d = Driver(browser, url)
    page = d.page
    page.locator("#note button").click()

    def once(status, message, headers=None):
        body = json.dumps({"error": {"message": message}})
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, headers=headers or {}, content_type="application/json", body=body), times=1)

    def retry():
        page.get_by_role("button", name="Generate another answer").click()
        d.idle()

    d.setting("max_tokens", "20")
    for status, message, said in ((429, "too many requests are waiting", "busy"), (503, "the model is loading", "loading"), (400, "temperature: 9 is out of range", "out of range")):
        page.keyboard.press("Alt+KeyN")
        once(status, message)
        d.send(PROMPT)
        check(f"status {status} is said in words", said in d.last(".error"), d.last(".error"))
        retry()
        check(f"after status {status} a retry answers in its place", len(d.last()) > 20 and page.locator(".branches").count() == 0, d.last())
    page.keyboard.press("Alt+KeyN")
    page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    d.send(PROMPT)
    check("a lost server is said in words", "can't be reached" in d.last(".error"), d.last(".error"))
    retry()
    check("after it a retry answers", len(d.last()) > 20, d.last())
    cut = sse("A text that ends early").split("data: [DONE]")[0]
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=cut), times=1)
    d.send("More")
    check("a stream that breaks off is said, and its text kept", "ended before" in d.last(".error") and "ends early" in d.last(), d.last(".error"))
    page.keyboard.press("Alt+KeyN")
    once(401, "an API key is needed")
    d.send(PROMPT)
    page.locator("#keyDialog[open]").wait_for()
    check("without a key one is asked for", "needs an API key" in page.inner_text("#keyMessage"), page.inner_text("#keyMessage"))
    page.fill("#newKey", "secret-7")
    with page.expect_request("**/v1/chat/completions") as request:
        page.keyboard.press("Enter")
    check("the key is sent", request.value.headers.get("authorization") == "Bearer secret-7")
    d.idle()
    check("after it the answer comes", len(d.last()) > 20, d.last())

    # While a model loads the page waits for it; two models make a choice, and one with a template needs no explanation.
    page.route("**/v1/models", lambda route: route.fulfill(status=503, content_type="application/json", body='{"error":{"message":"the model is loading"}}'), times=1)
    page.reload()
    page.locator("#banner", has_text="The model is loading").wait_for()
    page.locator("#banner").wait_for(state="hidden")
    check("the page waits for a model that loads", page.locator("#modelName").inner_text() != "")
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "one"}, {"id": "two"}]}))
    answer = page.request.get(f"{url.rstrip('/')}/props").json()
    page.route("**/props?*", lambda route: route.fulfill(json={**answer, "chat_template": True}))
    page.evaluate("localStorage.clear()")
    page.reload()
    page.locator("#modelChoice").wait_for()
    check("a model with a template is not explained", page.locator("#note").is_hidden())
    page.select_option("#modelChoice", "two")
    d.answer("Fine.")
    with page.expect_request("**/v1/chat/completions") as request:
        d.send("Hello")
    check("the chosen model is asked", request.value.post_data_json["model"] == "two", request.value.post_data)
    d.idle()
    check("an answer that ended needs no continuing", page.get_by_role("button", name="Continue this text").count() == 0)
    # The browser itself reports the failures that were made.
    d.errors = [it for it in d.errors if not it.startswith("Failed to load resource")]
    d.clean("errors")
    d.context.close()


def contrast(page):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    value = lambda name: page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    ratios = {}
    for pair in PAIRS:
        high, low = sorted((light(value(name)) for name in pair), reverse=True)
        ratios[pair] = (high + 0.05) / (low + 0.05)
    return min(ratios.items(), key=lambda it: it[1])


def looks(browser, url, shots):
    for scheme in ("light", "dark"):
        for width, height in ((390, 780), (1366, 860)):
            name = f"{scheme} {width}"
            d = Driver(browser, url, viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", has_touch=width < 500)
            page = d.page
            steps = iter(range(99))

            def shot():
                step = next(steps)
                d.fits(f"{name}, screen {step}")
                if shots:
                    page.screenshot(path=shots / f"{scheme}-{width}-{step}.png")

            pair, ratio = contrast(page)
            check(f"{name}: contrast of 4.5 or more", ratio >= 4.5, (pair, ratio))
            page.locator("#note button").click()
            d.setting("max_tokens", "300")
            d.send(PROMPT + " " + "w" * 200)
            page.get_by_role("button", name="Generate another answer").click()
            d.idle()
            shot()
            d.answer(HOSTILE + "\n```\n" + "long " * 100 + "\n```\n" + "|a" * 30 + "|\n" + "|-" * 30 + "|\n" + "|bbbb" * 30 + "|\n")
            d.send("Show me")
            shot()
            for key, what in (("KeyS", "#settings"), ("KeyH", "#help")):
                page.keyboard.press(f"Alt+{key}")
                page.locator(what).wait_for()
                shot()
                page.keyboard.press("Escape")
            if width < 500:
                for what in ("memory", "list"):
                    page.click(f"#{what}Button")
                    check(f"{name}: {what} opens", page.locator(f"#{what}").is_visible() and page.locator(f"#{what}Button").get_attribute("aria-expanded") == "true")
                    shot()
                    page.keyboard.press("Escape")
                    check(f"{name}: Esc closes {what}", page.locator(f"#{what}").is_hidden())
            else:
                keyboard(d, name)
            d.clean(name)
            d.context.close()


def keyboard(d, name):
    """Walks through the page by Tab: everything that can be used is reached, and its focus can be seen."""
    page = d.page
    wanted = page.evaluate("Array.from(document.querySelectorAll('button, a[href], select, textarea, input, pre')).filter((it) => it.checkVisibility() && !it.disabled).length")
    page.evaluate("document.activeElement.blur(); window.reached = new Set()")
    unseen = []
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
        seen = page.evaluate("""() => { const it = document.activeElement; if (it === document.body) return 'body';
            if (it.matches('button, a[href], select, textarea, input, pre')) reached.add(it); return getComputedStyle(it).outlineStyle; }""")
        if seen == "none":
            unseen.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
    reached = page.evaluate("reached.size")
    check(f"{name}: Tab reaches all of {wanted} controls", reached == wanted, reached)
    check(f"{name}: the focus can be seen everywhere", not unseen, unseen)
    unnamed = page.evaluate("Array.from(document.querySelectorAll('button, select, textarea, input')).filter((it) => !(it.ariaLabel || it.textContent.trim() || it.labels?.length)).map((it) => it.outerHTML)")
    check(f"{name}: all controls have names", not unnamed, unnamed)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    url, chromium = sys.argv[1:3]
    shots = pathlib.Path(sys.argv[3]) if len(sys.argv) == 4 else None
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"Chromium {browser.version}")
        for part in (lambda: chat(browser, url), lambda: hostile(browser, url), lambda: errors(browser, url), lambda: looks(browser, url, shots)):
            try:
                part()
            except TooLong as error:
                check("nothing is waited for in vain", False, str(error))
        browser.close()
    print(f"{passed} checks passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
