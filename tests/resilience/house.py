"""A real box with everything that can fail around it: two uplinks with providers behind them, a relay for members outside, a UPS, a
disk of its own and a clock of its own. All of it in network namespaces that end with it; needs root. For `soak` and `bench`."""

import ctypes, html, http.client, json, os, random, re, secrets, shutil, signal, socket, ssl, subprocess, tempfile, threading, time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "polder")
BINARY = os.environ.get("POLDER_BIN", str(ROOT / "target/debug/polder"))
MODEL = "smollm2-135m-instruct"
NEAR, FAR, SPARE = "192.168.77.1", "198.51.100.20", "192.168.77.29"
OUTSIDE = "soak.example.org"
PORT = 8443


def sh(script):
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\n(this needs root, and the tools that `make` installs for it)")
    return done.stdout


class Network:
    """A box with a house network and two uplinks; this program lives in the internet, and on the house network too."""

    def __init__(self):
        self.name = n = f"pr{os.getpid()}"
        script = "".join(f"ip netns add {n}{place}; ip -n {n}{place} link set lo up\n" for place in ("box", "i1", "i2", "net"))
        for k in (1, 2):
            script += f"""
                ip link add w{k} netns {n}box type veth peer name box netns {n}i{k}
                ip link add net netns {n}i{k} type veth peer name i{k} netns {n}net
                ip -n {n}box addr add 10.{k}.0.2/24 dev w{k}
                ip -n {n}i{k} addr add 10.{k}.0.1/24 dev box
                ip -n {n}i{k} addr add 10.3.{k}.1/24 dev net
                ip -n {n}net addr add 10.3.{k}.2/24 dev i{k}
                ip -n {n}box link set w{k} up
                ip -n {n}i{k} link set box up
                ip -n {n}i{k} link set net up
                ip -n {n}net link set i{k} up
                ip -n {n}box route add default via 10.{k}.0.1 dev w{k} metric 102{k}
                ip -n {n}i{k} route add default via 10.3.{k}.2
                ip netns exec {n}i{k} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
                ip netns exec {n}i{k} nft 'table ip t {{ chain n {{ type nat hook postrouting priority 100; oifname net masquerade; }}; }}'
                ip netns exec {n}i{k} nft 'table inet f {{ chain f {{ type filter hook forward priority 0; }}; }}'
            """
        for address in ("198.51.100.11", "198.51.100.12", FAR):
            script += f"ip -n {n}net addr add {address}/32 dev lo\n"
        script += f"""
            ip link add lan netns {n}box type veth peer name lan netns {n}net
            ip -n {n}box addr add {NEAR}/24 dev lan
            ip -n {n}box link set lan up
            ip -n {n}net link set lan up
        """
        # Every member has an address of their own, as people do.
        script += "".join(f"ip -n {n}net addr add 192.168.77.{k}/24 dev lan\n" for k in range(2, 30))
        sh(script)
        # From here on this process is in the internet; its threads too.
        with open(f"/var/run/netns/{n}net") as place:
            if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), 0x40000000):
                raise SystemExit("could not enter a network namespace; this needs root")
        for target in ("198.51.100.11", "198.51.100.12"):
            threading.Thread(target=self.answer, args=(target,), daemon=True).start()

    def answer(self, address):
        with socket.create_server((address, 443), backlog=64) as server:
            while True:
                server.accept()[0].close()

    def provider(self, k, command):
        sh(f"ip netns exec {self.name}i{k} {command}")

    def dies(self, k):
        self.provider(k, "nft add rule inet f f drop")

    def lives(self, k):
        self.provider(k, "nft flush chain inet f f")

    def cable(self, k, up):
        sh(f"ip -n {self.name}i{k} link set box {'up' if up else 'down'}")

    def inside(self, *command):
        return ["ip", "netns", "exec", f"{self.name}box", *map(str, command)]

    def close(self):
        for place in ("box", "i1", "i2", "net"):
            subprocess.run(["ip", "netns", "del", f"{self.name}{place}"], capture_output=True)


class Ups:
    """NUT's own programs with a UPS that is a file."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        write = lambda name, text: (folder / name).write_text(text)
        write("ups.conf", "pollinterval = 1\n[box]\n driver = dummy-ups\n port = box.dev\n")
        write("upsd.conf", "LISTEN 192.168.77.2 3493\nMAXAGE 3\n")
        write("upsd.users", '[polder]\n password = secret\n upsmon primary\n actions = SET FSD\n instcmds = ALL\n')
        self.values = {"ups.status": "OL", "battery.charge": "100", "battery.runtime": "1800", "ups.load": "20"}
        self.processes = []
        self.say()
        self.start()

    def run(self, name, *arguments):
        environment = dict(os.environ, NUT_CONFPATH=str(self.folder), NUT_STATEPATH=str(self.folder), NUT_ALTPIDPATH=str(self.folder))
        log = open(self.folder / f"{name}.log", "a")
        self.processes.append(subprocess.Popen([f"/lib/nut/{name}", *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def start(self):
        (self.folder / "dummy-ups-box").unlink(missing_ok=True)
        self.run("dummy-ups", "-a", "box", "-u", "root", "-D")
        until("the UPS's driver", lambda: (self.folder / "dummy-ups-box").exists(), 20)
        self.run("upsd", "-D", "-u", "root")

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def say(self, **values):
        self.values.update({name.replace("_", "."): value for name, value in values.items()})
        new = self.folder / "box.new"
        new.write_text("".join(f"{name}: {value}\n" for name, value in self.values.items()))
        new.rename(self.folder / "box.dev")
        # The driver reads its file once only, unless it is told otherwise.
        for name, value in values.items():
            self.set(name.replace("_", "."), value)

    def set(self, name, value):
        if not self.processes:
            return
        begun = time.monotonic()
        while time.monotonic() - begun < 10:
            try:
                with socket.create_connection(("192.168.77.2", 3493), 3) as upsd:
                    lines = upsd.makefile("rw", newline="\n")
                    said = ""
                    for line in ("USERNAME polder", "PASSWORD secret", f'SET VAR box {name} "{value}"'):
                        print(line, file=lines, flush=True)
                        said = lines.readline()
                    if said.startswith("OK"):
                        return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"the UPS of the test does not take {name}={value}")


class Disk:
    """The box's disk: a file system of its own, so large that conversations are kept on it, in a file that is almost all holes."""

    def __init__(self, folder, gib=9):
        self.folder, self.image, self.fill_file = folder, folder.with_suffix(".img"), folder / "fill"
        folder.mkdir()
        sh(f"truncate -s {gib}G {self.image} && mkfs.ext4 -q -m 0 -E lazy_itable_init=1,lazy_journal_init=1 {self.image}")
        self.mounted = subprocess.run(["mount", "-o", "loop", self.image, folder], capture_output=True).returncode == 0

    def fill(self):
        # First what can be had in one piece, then every last block.
        free = os.statvfs(self.folder)
        file = os.open(self.fill_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        size = free.f_bavail * free.f_frsize
        while size > 4096:
            try:
                os.posix_fallocate(file, os.fstat(file).st_size, size)
            except OSError:
                size //= 2
        try:
            while True:
                os.write(file, bytes(4096))
        except OSError:
            pass
        os.close(file)

    def empty(self):
        self.fill_file.unlink(missing_ok=True)

    def close(self):
        if self.mounted:
            subprocess.run(["umount", self.folder], capture_output=True)
        self.image.unlink(missing_ok=True)


def until(what, condition, seconds=90, pause=0.1):
    begun = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() - begun > seconds:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(pause)


class Box:
    """`polder up` in its namespace, started again when it ends as an init system would."""

    def __init__(self, network, state, folder, wrong_clock=True):
        self.network, self.state, self.folder = network, state, folder
        self.clock = folder / "clock"
        self.clock.write_text("+0\n")
        self.log = open(folder / "box.log", "a")
        self.out = folder / "box.out"
        self.environment = dict(os.environ)
        for hidden in ("DISPLAY", "WAYLAND_DISPLAY"):
            self.environment.pop(hidden, None)
        library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
        if wrong_clock and library:
            # Only what the calendar says: timers go on as they do when somebody sets a machine's clock.
            self.environment.update(LD_PRELOAD=str(library), FAKETIME_TIMESTAMP_FILE=str(self.clock), FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_CACHE_DURATION="1")
        self.wrong_clock = bool(wrong_clock and library)
        self.process, self.starts = None, 0

    def start(self, *arguments):
        self.starts += 1
        with open(self.out, "w") as out:
            self.process = subprocess.Popen(
                self.network.inside(BINARY, "up", "--state", self.state, *arguments),
                stdin=subprocess.DEVNULL, stdout=out, stderr=self.log, env=self.environment)

    def said(self, pattern):
        return re.search(pattern, self.out.read_text(errors="replace"))

    def supervise(self):
        """From now on, until `stop`."""
        self.wanted = True
        def keep():
            while self.wanted:
                if self.process.poll() is not None and self.wanted:
                    time.sleep(0.5)
                    self.start()
                time.sleep(0.05)
        threading.Thread(target=keep, daemon=True).start()

    def stop(self):
        self.wanted = False
        time.sleep(0.1)
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def polder(self, *arguments, typed=""):
        for _ in range(120):
            done = subprocess.run(self.network.inside(BINARY, *arguments, "--state", self.state), input=typed, capture_output=True, text=True)
            if "the box is busy" not in done.stderr:
                break
            time.sleep(0.5)
        if done.returncode:
            raise SystemExit(f"polder {' '.join(map(str, arguments))}: {done.stderr}")
        return done.stdout

    def ask(self, request, seconds=20):
        """One question to the supervisor; nothing where it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(seconds)
                control.connect(str(self.state / "run/control.sock"))
                control.sendall(json.dumps(request).encode() + b"\n")
                return json.loads(control.makefile().readline())
        except (OSError, ValueError):
            return None

    def status(self):
        said = self.ask("status")
        return said["status"] if said else None

    def ready(self):
        status = self.status()
        return status if status and status["gateway"]["state"] == "ready" and all(e["part"]["state"] == "ready" for e in status["engines"]) and status["engines"] else None

    def processes(self):
        """Every process of the box by what it is, with its number."""
        children = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if str(self.state).encode() in words and os.path.basename(words[0]) == os.path.basename(BINARY).encode():
                    children.setdefault(words[1].decode(), int(entry.name))
        return children


class Beside:
    """The machine next to the box: programs on it run where this one does."""

    @staticmethod
    def inside(*command):
        return list(map(str, command))


class Failed(Exception):
    """A request that got no whole answer: refused, reset, cut. `hung`: nothing came in all the time there was."""

    def __init__(self, why, hung=False, partial=None):
        super().__init__(why)
        self.hung, self.partial = hung, partial


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.text = body.decode(errors="replace")


class Person:
    """Somebody with a browser's session and programs' keys, at home or outside."""

    def __init__(self, ca, host, address, port, source=None):
        self.trust = ssl.create_default_context(cafile=str(ca))
        self.host, self.address, self.port, self.source, self.cookies = host, address, port, source, {}
        self.origin = f"https://{host}" + ("" if port == 443 else f":{port}")

    def ask(self, method, path, body=None, key=None, json_body=None, seconds=75):
        """The whole answer, or Failed."""
        headers = {"host": self.origin.removeprefix("https://"), "connection": "close"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        elif self.cookies:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method == "POST":
            headers["origin"] = self.origin
        if json_body is not None:
            body, headers["content-type"] = json.dumps(json_body), "application/json"
        elif body is not None:
            body, headers["content-type"] = urllib.parse.urlencode(body), "application/x-www-form-urlencoded"
        connection, so_far = None, b""
        begun = time.monotonic()
        try:
            raw = socket.create_connection((self.address, self.port), seconds, (self.source, 0) if self.source else None)
            raw.settimeout(seconds)
            wrapped = self.trust.wrap_socket(raw, server_hostname=self.host)
            connection = http.client.HTTPConnection(self.host)
            connection.sock = wrapped
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            pieces = []
            while piece := response.read1(65536):
                pieces.append(piece)
                so_far = b"".join(pieces)
                if time.monotonic() - begun > 4 * seconds:
                    raise Failed("an answer that never ends", hung=True, partial=so_far)
            if response.length not in (None, 0):
                raise Failed("an answer that breaks off", partial=so_far)
            for set_cookie in response.headers.get_all("set-cookie") or []:
                name, _, value = set_cookie.split(";")[0].partition("=")
                self.cookies[name] = value
                if not value:
                    del self.cookies[name]
            return Answer(response.status, response.headers, so_far)
        except TimeoutError as error:
            raise Failed(f"nothing came within {seconds} s", hung=True, partial=so_far) from error
        except ssl.SSLCertVerificationError as error:
            raise Failed(f"the certificate is not good: {error.verify_message}", partial=so_far) from error
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"{type(error).__name__}: {error}", partial=so_far) from error
        finally:
            if connection and connection.sock:
                connection.sock.close()

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, form, **more):
        return self.ask("POST", path, form, **more)


class House:
    """Everything, set up: a claimed box with members, a relay, a UPS, two uplinks, backups; with a spare where one is wanted."""

    def __init__(self, members=6, wrong_clock=True, spare=False):
        self.folder = Path(tempfile.mkdtemp(prefix="polder-house-"))
        self.parts, self.box, self.spare = [], None, None
        try:
            self.build(members, wrong_clock)
            if spare:
                self.pair()
        except BaseException:
            self.close()
            raise

    def build(self, members, wrong_clock):
        self.network = self.keep(Network())
        self.disk = self.keep(Disk(self.folder / "disk"))
        state = self.folder / "disk" / "state"
        state.mkdir()
        subprocess.run([BINARY, "weights", "import", MODEL, "--from", CACHE / "disk", "--state", state], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.box = Box(self.network, state, self.folder, wrong_clock)
        self.state, self.ca = state, state / "pki/ca.pem"
        self.claim()
        self.relay()
        self.box.start()
        self.box.supervise()
        until("the box", self.box.ready, 180)
        self.ups = Ups(self.folder / "ups")
        self.set_up()
        self.people = [self.steward]
        for n in range(1, members):
            self.invite(n)

    def pair(self):
        """Gives the box a spare, which stands in the house too."""
        folder = self.folder / "spare"
        (folder / "state").mkdir(parents=True)
        self.spare = Box(Beside(), folder / "state", folder, wrong_clock=False)
        self.spare.start("--listen", SPARE, "--port", str(PORT))
        self.spare.supervise()
        until("the spare", self.spare.status, 60)
        self.spare.ask({"apply": {"change": {"rename": "elm"}, "by": "console"}})
        until("the spare's name", lambda: self.spare.status()["site"]["name"] == "elm", 60)
        self.box.polder("spare", "pair", SPARE, typed=self.spare.polder("spare", "be"))
        until("the link of the two", lambda: "spare" in self.box.processes(), 60)

    def keep(self, part):
        self.parts.append(part)
        return part

    def near(self, n):
        return Person(self.ca, "polder.local", NEAR, PORT, f"192.168.77.{n + 2}")

    def far(self):
        return Person(self.ca, OUTSIDE, FAR, 443)

    def claim(self):
        """As the first steward does it in the wizard."""
        # At the house's addresses, and not everywhere: the relay's name is not there yet.
        self.box.start("--listen", "0.0.0.0", "--port", str(PORT))
        code = until("the claim code", lambda: self.box.said(r"type the code (\S+)"), 90)[1]
        at = Person(self.ca, "polder.local", NEAR, PORT)
        steps = [("/setup/claim", {"code": code}), ("/setup/machine", {}), ("/setup/model", {"recipe": MODEL})]
        for path, form in steps:
            said = at.post(path, form)
            assert said.status == 303, (path, said.status, said.text[:600])
        until("the model", lambda: at.get("/setup/import").headers.get("location") == "/setup/address", 120, 0.5)
        at.post("/setup/address", {"name": "polder", "reach": "everywhere"})
        until("the address", lambda: at.get("/setup/address").headers.get("location") == "/setup/power", 120, 0.5)
        at.post("/setup/power/on", {})
        at.post("/setup/lines/on", {})
        self.password = "four quiet brown otters"
        done = at.post("/setup/member", {"name": "Ada", "password": self.password, "again": self.password})
        key = re.search(r"plk_\w+", done.text)
        assert key, done.text[:600]
        at.source, at.name, at.key = "192.168.77.2", "Ada", key[0]
        self.steward = at
        self.box.stop()
        # Set by hand while the box is off: nobody has to confirm a new way out within a minute.
        site = (state := self.state / "site.toml").read_text()
        site = re.sub(r"(?m)^names = .*$", f'names = ["{OUTSIDE}"]', site)
        assert OUTSIDE in site, site
        for k in (1, 2):
            site += f'\n[uplinks.u{k}]\ninterface = "w{k}"\norder = {k}\nmetered = false\ntargets = ["198.51.100.11:443", "198.51.100.12:443"]\n'
        state.write_text(site)

    def relay(self):
        folder = self.folder / "relay"
        log = open(self.folder / "relay.log", "a")
        self.passed = subprocess.run([BINARY, "relay", "add", "soak", "--at", f"{FAR}:443", OUTSIDE, "--folder", folder], capture_output=True, text=True, check=True).stdout
        self.relaying = subprocess.Popen([BINARY, "relay", "run", "--listen", f"{FAR}:443", "--folder", folder], stdout=log, stderr=log)

    def set_up(self):
        """What the steward does on the pages and at the console."""
        line = re.search(r"polder-relay://\S+", self.passed)
        assert line, self.passed
        # With the relay's name the authority is a new one.
        self.steward = self.with_new_trust(self.steward)
        said = self.steward.post("/outside", {"pass": line[0]})
        assert said.headers.get("location") == "/outside", (said.status, said.headers.get("location"), said.text[:600])
        self.steward.post("/usage", {"per_member": "yes"})
        power = self.state / "power"
        power.mkdir(exist_ok=True)
        (power / "password").write_text("secret\n")
        self.box.polder("power", "use", "box@192.168.77.2:3493")
        key = [l.strip() for l in self.box.polder("backup", "kit").splitlines() if re.fullmatch(r" {4}[a-z ]+", l)]
        self.box.polder("backup", "kit", "--confirm", typed=" ".join(key) + "\n")
        (self.folder / "copies").mkdir()
        self.box.polder("backup", "to", str(self.folder / "copies"))

    def with_new_trust(self, person):
        new = Person(self.ca, person.host, person.address, person.port, person.source)
        new.cookies, new.name, new.key = person.cookies, person.name, person.key
        return new

    def invite(self, n):
        made = self.steward.post("/members/invite", {"note": f"n{n}", "role": "member", "days": "7"})
        token = re.search(r"https?://[^<>\"]+/invite/([\w-]+)", made.text)
        assert token, (made.status, re.sub(r"<[^>]+>", " ", made.text)[:3000])
        person = self.far() if n % 2 else self.near(n)
        person.name = f"Member{n}x{secrets.token_hex(4)}"
        form = {"name": person.name, "email": "", "password": self.password, "again": self.password}
        def join():
            try:
                return person.post(f"/invite/{token[1]}", form)
            except Failed:
                return None
        joined = until("a member's way in", join, 60, 0.5)
        assert joined.status == 303 and person.cookies, (joined.status, joined.text[:800])
        self.people.append(person)

    def close(self):
        try:
            for box in filter(None, (self.spare, self.box)):
                box.stop()
        finally:
            if hasattr(self, "ups"):
                self.ups.stop()
            if hasattr(self, "relaying"):
                self.relaying.kill()
                self.relaying.wait()
            for part in reversed(self.parts):
                part.close()
            shutil.rmtree(self.folder, ignore_errors=True)
