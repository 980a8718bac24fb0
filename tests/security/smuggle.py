"""Malformed requests that two programs would read differently, each with a second one hidden inside, against the real door.

A finding is: the hidden request was answered, or a request that must be refused was not."""

import socket, ssl

HIDDEN = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\nX-Hidden: 1\r\n\r\n"
POST = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\n"
BODY = '{"prompt": "x"}'

# (what, request, statuses of the only answer; 0 is none at all)
REQUESTS = [
    ("two lengths that differ", POST + "Content-Length: 0\r\nContent-Length: {n}\r\n\r\n{hidden}", (400,)),
    ("two lengths in one", POST + "Content-Length: 0, {n}\r\n\r\n{hidden}", (400,)),
    ("a length in hexadecimal", POST + "Content-Length: 0x5\r\n\r\n{hidden}", (400,)),
    ("a length with a sign", POST + "Content-Length: +5\r\n\r\n{hidden}", (400,)),
    ("a length with a blank inside", POST + "Content-Length: 1 5\r\n\r\n{hidden}", (400,)),
    ("another encoding", POST + "Transfer-Encoding: xchunked\r\n\r\n{hidden}", (400, 501)),
    ("identity, then a length", POST + "Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n{hidden}", (400, 501)),
    ("chunked, identity", POST + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}", (400, 501)),
    ("chunked twice", POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}", (400, 501)),
    ("a blank before the colon", POST + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}", (400,)),
    ("a folded line", POST + "X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n{hidden}", (400,)),
    ("both framings", POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n{hidden}", (200,)),
    ("HTTP/1.0 with chunks", "POST /tokenize HTTP/1.0\r\nHost: localhost\r\nX-Api-Key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}", (400, 505)),
    ("a chunk's size beyond all numbers", POST + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{hidden}", (0, 400)),
    ("a chunk's size with a sign", POST + "Transfer-Encoding: chunked\r\n\r\n-1\r\n{hidden}", (0, 400)),
    ("two hosts", "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n{hidden}", (400,)),
    ("no host", "GET /health HTTP/1.1\r\n\r\n{hidden}", (400,)),
    ("another site in the first line", "GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n{hidden}", (400,)),
    ("a NUL in a header", "GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b\0c\r\n\r\n{hidden}", (400,)),
    ("a lone carriage return", "GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b\rX-Hidden: 1\r\n\r\n{hidden}", (400,)),
]


def talk(port, ca, text):
    context = ssl.create_default_context(cafile=ca)
    with socket.create_connection(("127.0.0.1", port), timeout=15) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as stream:
            stream.sendall(text.encode("latin-1"))
            stream.settimeout(3)
            got = b""
            try:
                while piece := stream.recv(65536):
                    got += piece
            except (TimeoutError, ssl.SSLError, ConnectionError):
                pass
            return got.decode("latin-1")


def probe(port, ca, key):
    found = []
    hidden = HIDDEN.format(key=key)
    chunk = f"{len(BODY):x}\r\n{BODY}\r\n"
    # Whoever asks plainly gets it: a hidden request that would not be answered anyway proves nothing.
    if '"object":"list"' not in talk(port, ca, hidden):
        found.append("the hidden request is not answered when nobody hides it")
    for what, text, allowed in REQUESTS:
        got = talk(port, ca, text.format(key=key, n=len(hidden), hidden=hidden, chunk=chunk))
        answers = [line for line in got.split("\r\n") if line.startswith("HTTP/1.")] or ["HTTP/1.1 0"]
        status = int(answers[0].split(" ")[1])
        if len(answers) > 1 or '"object":"list"' in got:
            found.append(f"{what}: the hidden request was answered")
        elif status not in allowed:
            found.append(f"{what}: answered with {status}")
    return found
