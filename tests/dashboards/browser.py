"""A headless Chromium, driven by the WebDriver protocol over plain HTTP."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing():
  """What there is not, or None."""
  for name in ("chromium", "chromedriver"):
    if shutil.which(name) is None:
      return f"no {name} on this machine (Debian: chromium, chromium-driver)"
  return None


class Browser:
  """One window."""

  def __init__(self, url):
    self._url = url
    options = {
      "binary": shutil.which("chromium"),
      "args": [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1250,900",
      ],
    }
    session = self._ask(
      "POST",
      "/session",
      {
        "capabilities": {
          "alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
          }
        }
      },
    )
    self._session = f"/session/{session['sessionId']}"

  def _ask(self, method, path, body=None):
    request = urllib.request.Request(
      self._url + path,
      method=method,
      data=None if body is None else json.dumps(body).encode(),
      headers={"Content-Type": "application/json"},
    )
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
      raise AssertionError(error.read().decode()[:500]) from error

  def open(self, url):
    self._ask("POST", f"{self._session}/url", {"url": url})

  def run(self, script, *arguments):
    return self._ask(
      "POST",
      f"{self._session}/execute/sync",
      {"script": script, "args": list(arguments)},
    )

  def wait(self, script, seconds=20):
    """Until a script gives something true; that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      found = self.run(script)
      if found:
        return found
      time.sleep(0.05)
    raise AssertionError(f"never true: {script}; {self.text('body')[:500]}")

  def text(self, selector):
    return self.run(
      "return document.querySelector(arguments[0])?.innerText || ''", selector
    )

  def texts(self, selector):
    return self.run(
      "return [...document.querySelectorAll(arguments[0])]"
      ".map(node => node.innerText)",
      selector,
    )

  def press(self, keys):
    """Keys, as a person would: U+E004 and so on for others than letters."""
    actions = [
      {"type": kind, "value": key}
      for key in keys
      for kind in ("keyDown", "keyUp")
    ]
    self._ask(
      "POST",
      f"{self._session}/actions",
      {"actions": [{"type": "key", "id": "keys", "actions": actions}]},
    )

  def hover(self, selector):
    found = self._ask(
      "POST",
      f"{self._session}/element",
      {"using": "css selector", "value": selector},
    )
    move = {
      "type": "pointerMove",
      "duration": 0,
      "x": 0,
      "y": 0,
      "origin": {_ELEMENT: found[_ELEMENT]},
    }
    self._ask(
      "POST",
      f"{self._session}/actions",
      {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]},
    )

  def prefers(self, scheme):
    """As if the reader's system were "light" or "dark"."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    self._ask(
      "POST",
      f"{self._session}/goog/cdp/execute",
      {"cmd": "Emulation.setEmulatedMedia", "params": {"features": [feature]}},
    )

  def errors(self):
    """What the console says since the last time."""
    log = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
    return [each["message"] for each in log if each["level"] != "INFO"]

  def wait_for_errors(self, text, count, seconds=20):
    """Until the console has so many messages with `text`; those."""
    found, end = [], time.monotonic() + seconds
    while len(found) < count:
      found += [message for message in self.errors() if text in message]
      assert time.monotonic() < end, found
      time.sleep(0.05)
    return found

  def close(self):
    self._ask("DELETE", self._session)


@contextlib.contextmanager
def browser():
  """A window; skips the test where there is no Chromium."""
  if why := missing():
    pytest.skip(why)
  with subprocess.Popen(
    ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
  ) as driver:
    try:
      for line in driver.stdout:
        if "on port" in line and "started" in line:
          port = int(line.rsplit("port", 1)[1].strip(" .\n"))
          break
      else:
        raise AssertionError("chromedriver ended at once")
      window = Browser(f"http://127.0.0.1:{port}")
      yield window
      window.close()
    finally:
      driver.terminate()
