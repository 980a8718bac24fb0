"""Walks the handbook's section on Open WebUI with the real one, in a real browser: python walk.py POLDER OPEN_WEBUI FOLDER.

Not a part of `make test`: Open WebUI brings gigabytes along. Make an environment with `pip install open-webui`, and give its
program `open-webui` as OPEN_WEBUI. The browser is Debian's chromium, by way of its chromedriver; POLDER_SMOLLM2_FOLDER has the trial
model's file. FOLDER is made, and what the two write is left in it. Run it with the environment's own Python: it hashes
passwords with argon2-cffi, which Open WebUI brings along.
"""

import json
import os
import pathlib
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request

import argon2

POLDER, WEBUI, FOLDER = (str(pathlib.Path(path).absolute()) for path in sys.argv[1:4])
FOLDER = pathlib.Path(FOLDER)
PASSWORD = "a heron stands in the reeds"
PATIENCE = 300


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Browser:
    """One window, told what to do by the W3C's protocol."""

    def __init__(self):
        port = free_port()
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        self.at = f"http://127.0.0.1:{port}"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000",
                     "--ignore-certificate-errors", f"--user-data-dir={FOLDER / ('browser-%d' % port)}"]
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}}
        wait("the driver", lambda: self.call("GET", "/status")["ready"])
        session = self.call("POST", "/session", wanted)["sessionId"]
        self.at += f"/session/{session}"

    def call(self, method, path, body=None):
        data = None if body is None and method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.at + path, data, {"content-type": "application/json"}, method=method)
        return json.load(urllib.request.urlopen(request, timeout=PATIENCE))["value"]

    def visit(self, url):
        self.call("POST", "/url", {"url": url})

    def place(self):
        return self.call("GET", "/url")

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def words(self):
        return self.run("return document.body ? document.body.innerText : ''") or ""

    def hear(self, words):
        return wait(f"{words!r}", lambda: words in self.words(), self)

    def element(self, css):
        def look():
            try:
                return self.call("POST", "/element", {"using": "css selector", "value": css})
            except urllib.error.HTTPError:
                return None
        return list(wait(css, look, self).values())[0]

    def fill(self, css, text):
        self.call("POST", f"/element/{self.element(css)}/value", {"text": text})

    def press(self, css):
        self.call("POST", f"/element/{self.element(css)}/click")

    def press_words(self, words):
        script = """const all = [...document.querySelectorAll('button, a')];
            const one = all.find(e => e.innerText.trim() === arguments[0]); if (one) one.click(); return !!one"""
        wait(f"a button {words!r}", lambda: self.run(script, words), self)

    def picture(self, name):
        import base64
        (FOLDER / f"{name}.png").write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def close(self):
        self.call("DELETE", "")
        self.driver.terminate()


def wait(what, look, browser=None):
    begun = time.monotonic()
    while True:
        try:
            found = look()
        except (urllib.error.URLError, ConnectionError):
            found = None
        if found:
            return found
        if time.monotonic() - begun > PATIENCE:
            said = f" at {browser.place()}:\n{browser.words()}" if browser else ""
            if browser:
                browser.picture("stuck")
            sys.exit(f"waited in vain for {what}{said}")
        time.sleep(0.2)


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5)
        return True
    except urllib.error.HTTPError:
        return True


def polder(state, *arguments, **more):
    return subprocess.run([POLDER, *arguments, "--state", str(state)], check=True, capture_output=True, text=True, **more)


def box(state, port):
    log = open(FOLDER / "box.log", "a")
    running = subprocess.Popen([POLDER, "up", "--yes", "--json", "--port", str(port), "--state", str(state)],
                               stdout=subprocess.PIPE, stderr=log, text=True)
    for line in running.stdout:
        if "api_key" in line:
            return running, json.loads(line)
    sys.exit("the box did not start; see box.log")


def people(state):
    """Two with passwords: pages of the box make members by invite, which is another story's."""
    hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
    with sqlite3.connect(state / "polder.db") as db:
        for name, role in [("ada", "steward"), ("grace", "member")]:
            db.execute("INSERT INTO members (name, name_key, role, password, created_at) VALUES (?, ?, ?, ?, ?)",
                       (name, name, role, hasher.hash(PASSWORD), int(time.time())))


def main():
    FOLDER.mkdir()
    state = FOLDER / "box"
    state.mkdir()
    polder(state, "weights", "import", "smollm2-135m-instruct", "--from", os.environ["POLDER_SMOLLM2_FOLDER"])
    port, webui_port = free_port(), free_port()
    running, up = box(state, port)
    running.terminate()
    running.wait()
    people(state)
    running, up = box(state, port)
    webui = None
    try:
        base, webui_base = up["url"], f"http://localhost:{webui_port}"
        # A steward writes the app down.
        ada = Browser()
        ada.visit(f"{base}/sign-in?next=/apps")
        ada.fill("[name=name]", "ada")
        ada.fill("[name=password]", PASSWORD)
        ada.press("form button[type=submit]")
        ada.fill("form[action='/clients'] [name=title]", "Open WebUI")
        ada.fill("form[action='/clients'] [name=redirects]", f"{webui_base}/oauth/oidc/callback")
        if ada.run("return !!document.querySelector('#asks_models')"):
            ada.press("label[for=asks_models]")
        ada.press("form[action='/clients'] button[type=submit]")
        ada.hear("is written down")
        value = "const e = document.querySelector(arguments[0]); return e.value || e.textContent"
        client, secret = (ada.run(value, f"#{name}").strip() for name in ("client", "secret"))
        # The handbook's lines, with this box's values.
        bundle = FOLDER / "trusted.pem"
        bundle.write_text(pathlib.Path("/etc/ssl/certs/ca-certificates.crt").read_text() + pathlib.Path(up["ca_file"]).read_text())
        handbook = (pathlib.Path(__file__).parents[2] / "appliance/handbook/chapters/sign-in.md").read_text()
        lines = re.findall(r"^    ([A-Z_]+)=(.*)$", handbook, re.M)
        told = {"the client's number": client, "its secret": secret,
                "the box's certificate, with those that the system trusts": str(bundle)}
        settings = {}
        for name, text in lines:
            text = told.get(text, text)
            settings[name] = text.replace("https://oak.local", base).replace("https://ITS-NAME", webui_base)
        if os.environ.get("ONE_KEY"):
            # Everybody's questions with one key, as a box does that lets no app ask in its members' names.
            settings.pop("OPENAI_API_CONFIGS")
            settings["OPENAI_API_KEYS"] = up["api_key"]
        print(json.dumps({k: v for k, v in settings.items() if "SECRET" not in k and "KEYS" not in k}, indent=1))
        quiet = {"OFFLINE_MODE": "true", "ENABLE_VERSION_UPDATE_CHECK": "false", "ENABLE_OLLAMA_API": "false",
                 "DATA_DIR": str(FOLDER / "webui"), "WEBUI_SECRET_KEY": "only for this walk", "ANONYMIZED_TELEMETRY": "false"}
        log = open(FOLDER / "webui.log", "w")
        webui = subprocess.Popen([WEBUI, "serve", "--host", "127.0.0.1", "--port", str(webui_port)], cwd=FOLDER,
                                 env={**os.environ, **quiet, **settings}, stdout=log, stderr=log)
        wait("Open WebUI", lambda: answers(f"{webui_base}/health"))
        print("Open WebUI answers,", json.load(urllib.request.urlopen(f"{webui_base}/api/version"))["version"])
        for who, browser in [("ada", ada), ("grace", Browser())]:
            walk(who, browser, base, webui_base)
    finally:
        running.terminate()
        running.wait()
        if webui:
            webui.terminate()
            webui.wait()


def walk(who, browser, base, webui_base):
    browser.visit(webui_base)
    wait("its first page", lambda: any(w in browser.words() for w in ("Get started", "Continue with Polder")), browser)
    if "Get started" in browser.words():
        browser.press_words("Get started")
    browser.press_words("Continue with Polder")
    if who != "ada":
        browser.fill("[name=name]", who)
        browser.fill("[name=password]", PASSWORD)
        browser.press("form button[type=submit]")
    # The first time they are asked what it may see and do.
    browser.press("form[action='/oidc/agree'] button[value=yes]")
    wait("Open WebUI's own page", lambda: browser.place().startswith(webui_base) and "/auth" not in browser.place(), browser)
    me = wait("who it takes them for", lambda: browser.run(
        "const x = new XMLHttpRequest(); x.open('GET', '/api/v1/auths/', false);"
        "x.setRequestHeader('authorization', 'Bearer ' + localStorage.token); x.send(); return x.responseText"))
    me = json.loads(me)
    print(who, "is", me["name"], me["role"], me["email"])
    assert (me["name"], me["role"]) == (who, "admin" if who == "ada" else "user"), me
    browser.picture(f"{who}-signed-in")
    # What is new is shown over the page at first.
    browser.run("document.querySelectorAll('[role=dialog] button, .modal button').forEach(b => /Okay|Let/.test(b.innerText) && b.click())")
    browser.fill("#chat-input", "Say hello.")
    browser.press("#send-message-button")
    said = wait("an answer", lambda: browser.run(
        "const a = [...document.querySelectorAll('.chat-assistant')].pop(); return a && a.innerText.trim()"), browser)
    time.sleep(3)
    browser.picture(f"{who}-answered")
    print(who, "was answered:", said[:200])
    browser.close()


main()
