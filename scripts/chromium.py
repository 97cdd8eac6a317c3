"""A headless Chromium that is driven over the DevTools protocol, with a microphone that plays a file.

It is for the tests of the captions page and its screenshots. It needs Debian's `chromium`, and `websockets`
of the extra `serve`. Every wait is bounded, and the browser ends with the `with` block, whatever happens.
What this file does not do: know the page.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_START_S = 60.0
_CALL_S = 60.0
_KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, ""), "Escape": (27, "")}


def find_chromium() -> str | None:
    """Return the program, or None if this machine has none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Chromium:
    """One browser.

    Args:
        program: from `find_chromium`.
        sound: a WAV file that the microphone plays once whenever it is opened, then silence.
    """

    def __init__(self, program: str, sound: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-asr-chromium-", ignore_cleanup_errors=True)
        # A browser whose driver was killed ends with it.
        self._command = [
            *(("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()),
            program,
            "--headless=new",
            f"--user-data-dir={self._folder.name}",
            "--remote-debugging-port=0",
            "--no-first-run",
            "--disable-gpu",
            "--disable-software-rasterizer",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-extensions",
            "--disable-sync",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",  # lets the page have the microphone
            f"--use-file-for-fake-audio-capture={sound}%noloop",
            *(("--no-sandbox",) if os.getuid() == 0 else ()),  # it refuses to run as root otherwise
            "about:blank",
        ]
        self._open = contextlib.ExitStack()
        self._n_calls = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        log = Path(self._folder.name) / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            port, path = self._wait_for_port(log)
            url = f"ws://127.0.0.1:{port}{path}"
            self._socket = self._open.enter_context(
                connect(url, max_size=None, open_timeout=_CALL_S, compression=None)
            )
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
            self._open.close()
            self._process.wait(10)
        self._kill()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result.

        Raises:
            RuntimeError: the browser refuses.
            TimeoutError: it does not answer.
        """
        self._n_calls += 1
        message = {"id": self._n_calls, "method": method, "params": params}
        self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        until = time.monotonic() + _CALL_S
        while True:
            answer = json.loads(self._socket.recv(timeout=max(0.0, until - time.monotonic())))
            if answer.get("id") == self._n_calls:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """Open an empty page that shares nothing with any other."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log", "Audits"):
            page.call(f"{domain}.enable")
        page.show()
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def _wait_for_port(self, log: Path) -> tuple[str, str]:
        """Wait until the browser has written where it listens."""
        file = Path(self._folder.name) / "DevToolsActivePort"
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ValueError):
                port, path = file.read_text().split()
                return port, path
            time.sleep(0.05)
        raise RuntimeError(f"Chromium did not start: {log.read_text(errors='replace')[-2000:]}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._folder.cleanup()


class Page:
    """One page of a browser. `Chromium.page` makes it."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """See `Chromium.call`."""
        return self._browser.call(method, self._session, **params)

    def show(self, *, width: int = 1120, height: int = 700, scale: float = 1, is_dark: bool = False) -> None:
        """Show the page on a screen of this size; nothing on it moves by itself."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        media = {
            "prefers-color-scheme": "dark" if is_dark else "light",
            "prefers-reduced-motion": "reduce",  # and drawing costs less
        }
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Load a page and wait until it is there; complaints of all pages before are forgotten."""
        self._browser.events.clear()
        failure = self.call("Page.navigate", url=url).get("errorText")
        if failure:
            raise RuntimeError(f"{url}: {failure}")
        self.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is, once it is settled."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str, within_s: float = 60.0) -> Any:
        """Wait until an expression is true, and return it.

        Raises:
            TimeoutError: it does not become true; the message has what the page shows.
        """
        until = time.monotonic() + within_s
        while not (found := self.value(expression)):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression}: {self.value('document.body.innerText')}")
            time.sleep(0.1)
        return found

    def text(self, selector: str) -> str:
        """Return the text of an element as it is shown."""
        found: str = self.value(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        box = self.value(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); return e.getBoundingClientRect().toJSON(); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left"}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, clickCount=1, **place)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key and release it: Enter, Tab, Escape or a space."""
        code, text = _KEYS[key]
        shared = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def write(self, text: str) -> None:
        """Type a text into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def save_into(self, folder: Path) -> None:
        """Let downloads of this page go to a folder."""
        self._browser.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            browserContextId=self._context,
            downloadPath=str(folder),
        )

    def screenshot(self, path: Path) -> None:
        """Write what is shown as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Return errors and warnings of the console, exceptions, and what a policy did not allow, so far."""
        self.value("0")  # what came before has been received with the answer
        found = []
        for event in self._browser.events:
            params = event["params"]
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str(params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            elif event["method"] == "Audits.issueAdded":
                found.append(str(params["issue"]))
        return found
