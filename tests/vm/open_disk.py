"""Decrypts a copy of a box's disk where there is no device mapper to do it.

    open_disk.py DISK KEY PLAIN    DISK: a LUKS2 volume (aes-xts-plain64, 4096-byte sectors, data from 16 MiB on);
                                   KEY: its volume key; PLAIN: where to write what is in it

What was never written stays a hole: nothing reads it.
"""

import ctypes
import sys

START, SECTOR = 16 << 20, 4096
crypto = ctypes.CDLL("libcrypto.so.3")
for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_xts"):
    getattr(crypto, name).restype = ctypes.c_void_p
context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
disk, key, plain = sys.argv[1:]
key = open(key, "rb").read()
assert len(key) == 64, "the key of another cipher"
assert crypto.EVP_DecryptInit_ex(context, ctypes.c_void_p(crypto.EVP_aes_256_xts()), None, key, bytes(16)) == 1
out, length = ctypes.create_string_buffer(SECTOR), ctypes.c_int()
with open(disk, "rb") as source, open(plain, "wb") as target:
    source.seek(START)
    number = 0
    while sectors := source.read(SECTOR << 8):
        if sectors.count(0) < len(sectors):
            for at in range(0, len(sectors), SECTOR):
                sector = sectors[at : at + SECTOR]
                if sector.count(0) == SECTOR:
                    continue
                # Counted in sectors of 512 bytes, whatever their size.
                tweak = ((number + at // SECTOR) * 8).to_bytes(16, "little")
                crypto.EVP_DecryptInit_ex(context, None, None, None, tweak)
                assert crypto.EVP_DecryptUpdate(context, out, ctypes.byref(length), sector, len(sector)) == 1
                target.seek((number << 12) + at)
                target.write(out.raw[: length.value])
        number += len(sectors) // SECTOR
    target.truncate(number * SECTOR)
