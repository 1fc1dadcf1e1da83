"""Drives a real Chromium over its debugging pipe: open a page, evaluate, press keys, look, count errors.

Standard library only; the browser is the machine's own (Debian: `apt install chromium`), or `TAGPR_CHROMIUM` names it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 60.0
# The browser reads commands from descriptor 3 and writes to 4.
_ON_THREE_AND_FOUR = (
    "import fcntl, os, sys\n"
    "r, w = (fcntl.fcntl(int(x), fcntl.F_DUPFD, 10) for x in sys.argv[1:3])\n"
    "os.dup2(r, 3); os.dup2(w, 4)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)
_KEYS = {"ArrowDown": 40, "ArrowUp": 38, "PageDown": 34, "PageUp": 33, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


def find() -> str | None:
    """Path of a Chromium; None where there is none."""
    return os.environ.get("TAGPR_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A headless Chromium with a profile of its own; use as a context manager."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = [
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
            f"--user-data-dir={self._profile.name}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_THREE_AND_FOUR, str(to_read), str(to_write), path, *flags],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: deque[dict[str, Any]] = deque()
        self._news = threading.Condition()
        self._gone = False
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        self._profile.cleanup()

    def _listen(self) -> None:
        rest = b""
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while block := pipe.read(1 << 20):
                *messages, rest = (rest + block).split(b"\0")
                for raw in messages:
                    message = json.loads(raw)
                    with self._news:
                        if "id" in message:
                            self._answers[message["id"]] = message
                        else:
                            self.events.append(message)
                        self._news.notify_all()
        with self._news:
            self._gone = True
            self._news.notify_all()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; its result. RuntimeError if the browser refuses or is silent."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        try:
            os.write(self._write, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise RuntimeError(f"{method}: the browser is gone") from None
        with self._news:
            self._news.wait_for(lambda: self._gone or self._id in self._answers, TIMEOUT_S)
            if self._id not in self._answers:
                why = "the browser is gone" if self._gone else f"no answer from the browser in {TIMEOUT_S:g} s"
                raise RuntimeError(f"{method}: {why}")
            answer = self._answers.pop(self._id)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def wait_event(self, method: str, session: str) -> None:
        """Until the page has sent this event."""

        def came() -> bool:
            return any(e.get("method") == method and e.get("sessionId") == session for e in self.events)

        with self._news:
            if not self._news.wait_for(came, TIMEOUT_S):
                raise RuntimeError(f"{method}: not within {TIMEOUT_S:g} s")

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open a file in a new tab and wait until it is drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        scheme = "dark" if dark else "light"
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        begun = time.monotonic()
        page.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_event("Page.loadEventFired", session)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        page.open_s = time.monotonic() - begun
        return page


class Page:
    """One tab."""

    open_s: float = 0.0
    """From the request to the second frame drawn after `load`."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def size(self, width: int, height: int) -> None:
        """The window's size in CSS pixels; under 600 wide it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited. RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def key(self, name: str) -> None:
        """Press and release a key of `_KEYS`."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=_KEYS[name])

    def vision(self, kind: str) -> None:
        """As someone sees it: "deuteranopia", "achromatopsia", "none", ..."""
        self.call("Emulation.setEmulatedVisionDeficiency", type=kind)

    def screenshot(self, path: Path, *, selector: str | None = None, whole: bool = False) -> None:
        """A PNG of the window, of the whole page, or of one element."""
        more: dict[str, Any] = {}
        if selector or whole:
            query = f"document.querySelector({json.dumps(selector or 'html')})"
            box = self.evaluate(
                f"(() => {{ const r = {query}.getBoundingClientRect();"
                " return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
            )
            clip = dict(zip(("x", "y", "width", "height"), box, strict=True))
            more = {"captureBeyondViewport": True, "clip": {**clip, "scale": 1}}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"]))

    def errors(self) -> list[str]:
        """What the console counts as errors, and uncaught exceptions."""
        found = []
        for event in [e for e in list(self.browser.events) if e.get("sessionId") == self.session]:
            body, method = event["params"], event["method"]
            if method == "Runtime.exceptionThrown":
                details = body["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Log.entryAdded" and body["entry"]["level"] == "error":
                found.append(body["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and body["type"] in ("error", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in body["args"]))
        return found

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)
