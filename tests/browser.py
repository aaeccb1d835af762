"""A headless Chromium, driven by its DevTools protocol over a pipe, which needs no package."""

import fcntl
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A page in a browser, and all events that it has sent: requests, errors, messages of the console."""

    def __init__(self, profile: Path) -> None:
        commands, to_browser = os.pipe()
        from_browser, answers = os.pipe()
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        # The browser reads commands from file descriptor 3 and writes to 4. Those here may not be 3 or 4 themselves.
        high = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (commands, answers)]
        program = f'exec "$0" "$@" --remote-debugging-pipe 3<&{high[0]} 4>&{high[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", program, str(CHROMIUM), *arguments],
            pass_fds=high,
            stderr=subprocess.DEVNULL,
        )
        for number in (commands, answers, *high):  # so that the pipe ends with the browser
            os.close(number)
        self.limit = threading.Timer(120, self.process.kill)  # seconds
        self.limit.start()
        self.to_browser, self.from_browser = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb")
        self.events: list[dict[str, Any]] = []
        self.count, self.session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{part}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.limit.cancel()
        self.process.kill()
        self.process.wait()
        self.to_browser.close()
        self.from_browser.close()

    def receive(self) -> dict[str, Any]:
        """The next message."""
        content = bytearray()
        while (byte := self.from_browser.read(1)) != b"\0":
            if not byte:
                raise EOFError("the browser has ended")
            content += byte
        message: dict[str, Any] = json.loads(content)
        if "method" in message:
            self.events.append(message)
        if message.get("method") == "Page.javascriptDialogOpening":  # it would wait for somebody
            self.send(0, "Page.handleJavaScriptDialog", accept=True)
        return message

    def send(self, number: int, method: str, **parameters: Any) -> None:
        """Calls a method of the protocol without waiting for its answer."""
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.to_browser.write(json.dumps(message).encode() + b"\0")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self.count += 1
        self.send(self.count, method, **parameters)
        while (answer := self.receive()).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def open(self, path: Path) -> None:
        """Opens a file, and waits until it is loaded."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")
