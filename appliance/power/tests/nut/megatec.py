"""A UPS on a serial cable that speaks Megatec's protocol: at the end of a pseudo-terminal, whose other end is printed; or of a
virtual machine's serial line, where a socket's path is given; or of the cable ttyS1 of another system, where its /dev is given.

Lines on standard input change how it is: "mains 0", "volts 25.1", "low 1". What it is told to do is printed: "cut S.5R0003",
"test T"."""

import fcntl
import os
import select
import socket
import struct
import sys
import tty

TIOCSPTLCK, TIOCGPTN = 0x40045431, 0x80045430

state = {"mains": 1.0, "volts": 27.0, "low": 0.0, "testing": 0.0}


def say(words):
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def answer(asked):
    if asked == "Q1":
        bits = "%d%d00%d%d00" % (state["mains"] == 0, state["low"], 1, state["testing"] > 0)
        state["testing"] = max(0, state["testing"] - 1)
        volts = 230.0 if state["mains"] else 0.0
        return "(%05.1f %05.1f 230.0 014 50.0 %04.1f 30.0 %s\r" % (volts, volts, state["volts"], bits)
    if asked == "F":
        return "#230.0 002 024.0 50.0\r"
    if asked == "I":
        return "#%-15s %-10s %-10s\r" % ("Polder", "Toy", "1")
    if asked.startswith("S"):
        say("cut " + asked)
        return ""
    if asked == "T":
        state["testing"] = 4
        say("test " + asked)
        return ""
    if asked == "C":
        say("keep " + asked)
        return ""
    # A command that it does not know comes back as it was.
    return asked + "\r"


def cable():
    if len(sys.argv) > 1 and os.path.isdir(sys.argv[1]):
        here = os.open(sys.argv[1] + "/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(here, TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("I", fcntl.ioctl(here, TIOCGPTN, bytes(4)))
        path = "%s/pts/%d" % (sys.argv[1], number)
        os.chmod(path, 0o666)
        # Held open, so that the cable stays plugged in while no driver runs.
        tty.setraw(os.open(path, os.O_RDWR | os.O_NOCTTY))
        os.symlink("pts/%d" % number, sys.argv[1] + "/ttyS1")
        return here
    if len(sys.argv) > 1:
        line = socket.socket(socket.AF_UNIX)
        line.connect(sys.argv[1])
        return line.detach()
    here, there = os.openpty()
    tty.setraw(there)
    say(os.ttyname(there))
    return here


line, heard, said = cable(), b"", b""
while True:
    ready, _, _ = select.select([line, 0], [], [])
    if 0 in ready:
        more = os.read(0, 4096)
        if not more:
            sys.exit()
        said += more
        *lines, said = said.split(b"\n")
        for told in lines:
            name, value = told.decode().split()
            state[name] = float(value)
    if line in ready:
        more = os.read(line, 256)
        if not more:
            sys.exit()
        heard = (heard + more)[-256:]
        *asked, heard = heard.split(b"\r")
        for one in asked:
            os.write(line, answer(one.decode("ascii", "replace").strip()).encode())
