# Makes the keys that sign what a machine starts and what its boot measures, in /mnt/keys. Firmware and TPMs
# all know RSA with 2048 bits. Firmware looks at no date; openssl wants one.
umask 077
cd /mnt/keys
openssl req -x509 -newkey rsa:2048 -noenc -sha256 -days 36500 -subj "/CN=Polder Secure Boot" \
    -keyout secure-boot.key -out secure-boot.crt
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out pcr.key
openssl pkey -in pcr.key -pubout -out pcr.pub
chmod 644 secure-boot.crt pcr.pub
