"""What the tests of HTML pages share: faults that can be seen in the text, and a browser to look with."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EMPTY = {"meta", "link", "img", "br", "hr", "input"}


class _Structure(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.tags.append(("svg title" if tag == "title" and "svg" in self.open else tag, about))
        if tag not in EMPTY:
            self.open.append(tag)
        if len(about) < len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice: {attrs}")
        if tag == "img" and not about.get("alt"):
            self.faults.append("an image without alternative text")
        if tag == "th" and about.get("scope") not in ("col", "row"):
            self.faults.append("a heading cell without scope")
        for key in ("src", "href", "xlink:href", "action", "poster", "srcset", "background"):
            if key in about and not about[key].startswith(("#", "data:")):
                self.faults.append(f"<{tag} {key}> goes outside: {about[key][:60]}")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")


def faults(page: str) -> list[str]:
    """What is wrong with the structure of a page: for a screen reader, without a network, in any browser."""
    parser = _Structure()
    parser.feed(page)
    parser.close()
    found = parser.faults + [f"<{tag}> is not closed" for tag in parser.open]
    ids = Counter(about["id"] for _, about in parser.tags if "id" in about)
    found += [f"id {key!r} is there {count} times" for key, count in ids.items() if count > 1]
    for _, about in parser.tags:
        named = [*about.get("aria-labelledby", "").split(), about.get("href", "#").removeprefix("#")]
        found += [f"no element has the id {key!r}" for key in named if key and key not in ids and ":" not in key]
    levels = [int(tag[1]) for tag, _ in parser.tags if tag in ("h1", "h2", "h3", "h4")]
    found += [f"h{b} follows h{a}" for a, b in itertools.pairwise([0, *levels]) if b > a + 1]
    found += [
        f"{tag}: {n}, not 1" for tag in ("main", "h1", "title") if (n := [t for t, _ in parser.tags].count(tag)) != 1
    ]
    for _, about in (entry for entry in parser.tags if entry[0] == "svg"):
        if about.get("aria-hidden") != "true" and not (about.get("role") == "img" and about.get("aria-labelledby")):
            found.append("a chart without a name")
    return found


class Browser:
    """Headless Chromium, driven through a pipe (chromedevtools.github.io/devtools-protocol)."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM
        quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
        command = [CHROMIUM, "--headless", *quiet.split(), "--disable-sync", f"--user-data-dir={folder}"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # It takes commands from descriptor 3 and answers on 4.
        start = "import os, sys; i, o = (os.dup(int(n)) for n in sys.argv[1:3]); os.dup2(i, 3); os.dup2(o, 4)"
        start += "; os.set_inheritable(3, True); os.set_inheritable(4, True); os.execv(sys.argv[3], sys.argv[3:])"
        ends = [str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, *ends, *command, "--remote-debugging-pipe"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._buffer, self._count = ours_in, ours_out, b"", itertools.count(1)
        self._session: str | None = None
        self._events: list[dict] = []

    def close(self) -> None:
        self._session = None
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **arguments) -> dict:
        number = next(self._count)
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": arguments, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self, seconds: float = 60) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, width: int = 1200, dark: bool = False, script: bool = True) -> None:
        """Load a file from the disk into a tab of its own, `width` pixels wide; for a reader with a dark desktop."""
        self._session, self._events = None, []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._url = path.resolve().as_uri()
        self.call("Page.navigate", url=self._url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())

    def evaluate(self, script: str) -> object:
        """The value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)

    def problems(self) -> list[str]:
        """Errors of the console, and requests for anything but the page itself, since it was opened."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        found = []
        for event in self._events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent" and not about["request"]["url"].startswith(("data:", self._url)):
                found.append(f"asks for {about['request']['url']}")
            elif method == "Runtime.exceptionThrown" or method == "Log.entryAdded":
                found.append(json.dumps(about)[:1500])
            elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(about["args"])[:1500])
        return found


# Each text with the contrast of its colour to what is behind it (WCAG 2.2, 1.4.3), the lowest first.
CONTRASTS = """(() => {
  const parts = colour => { const c = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    c.fillStyle = colour; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = rgb => [.2126, .7152, .0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const mix = (top, below, share) => top.slice(0, 3).map((v, i) => v * share + below[i] * (1 - share)).concat(255);
  const over = (top, below) => mix(top, below, top[3] / 255);
  const behind = node => { const below = node.parentElement ? behind(node.parentElement) : [255, 255, 255, 255];
    return over(parts(getComputedStyle(node).backgroundColor), below); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), seen = new Map();
  for (let text; text = walker.nextNode();) {
    const node = text.parentElement;
    if (!text.data.trim() || node.closest("script, title, desc, .shot") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), ground = behind(node);
    const ink = over(parts(node.closest("svg") ? style.fill : style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const key = node.tagName + " " + style.color + " on " + ground.join();
    if (!seen.has(key) || seen.get(key) > ratio) seen.set(key, ratio);
  }
  return [...seen].sort((x, y) => x[1] - y[1]);
})()"""
