"""Decrypts a copy of a box's disk where there is no device mapper to do it.

    open_disk.py DISK AT KEY PLAIN    DISK: has a LUKS2 volume (aes-xts-plain64) from byte AT to its end; KEY: its volume
                                      key; PLAIN: where to write what is in it

What was never written stays a hole: nothing reads it.
"""

import ctypes
import json
import os
import sys

PIECE = 1 << 20
crypto = ctypes.CDLL("libcrypto.so.3")
for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_xts"):
    getattr(crypto, name).restype = ctypes.c_void_p
context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
disk, at, key, plain = sys.argv[1:]
volume = int(at)
key = open(key, "rb").read()
assert len(key) == 64, "the key of another cipher"
with open(disk, "rb") as source:
    # The binary header is one page; what follows it is JSON up to a zero.
    source.seek(volume)
    assert source.read(6) == b"LUKS\xba\xbe", "no LUKS volume"
    source.seek(volume + 4096)
    (segment,) = json.loads(source.read(1 << 20).split(b"\0", 1)[0])["segments"].values()
assert segment["encryption"] == "aes-xts-plain64", segment
start, size = volume + int(segment["offset"]), segment["sector_size"]
assert crypto.EVP_DecryptInit_ex(context, ctypes.c_void_p(crypto.EVP_aes_256_xts()), None, key, bytes(16)) == 1
out, length = ctypes.create_string_buffer(PIECE), ctypes.c_int()
begin, told, nothing = ctypes.addressof(out), ctypes.byref(length), bytes(size)
tweaked, decrypt = crypto.EVP_DecryptInit_ex, crypto.EVP_DecryptUpdate
with open(disk, "rb", buffering=0) as source, open(plain, "wb") as target:
    end = os.fstat(source.fileno()).st_size
    place = start
    while place < end:
        try:
            # From one piece of data to the next, over the holes.
            data = os.lseek(source.fileno(), place, os.SEEK_DATA)
            place = max(place, start + (data - start) // PIECE * PIECE)
        except OSError:
            break
        os.lseek(source.fileno(), place, os.SEEK_SET)
        piece = source.read(PIECE)
        ctypes.memset(out, 0, PIECE)
        for at in range(0, len(piece), size):
            sector = piece[at : at + size]
            if sector == nothing:
                continue
            # Counted in sectors of 512 bytes, whatever their size.
            tweaked(context, None, None, None, ((place - start + at) >> 9).to_bytes(16, "little"))
            assert decrypt(context, ctypes.c_void_p(begin + at), told, sector, len(sector)) == 1
        target.seek(place - start)
        target.write(out.raw[: len(piece)])
        place += len(piece)
    target.truncate(end - start)
