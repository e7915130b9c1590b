#!/usr/bin/env bash
# Makes what the SuperLink needs for TLS: a certificate authority of your own, and the server's certificate and key.
#
#     make-certificates.sh FOLDER NAME_OR_ADDRESS...
#
# Nodes and whoever calls `flwr` get FOLDER/ca.crt; the server also server.pem and server.key. FOLDER/ca.key stays
# with whoever runs this, off the server. Call it again to renew the server's certificate: the authority is kept, so
# nodes need nothing new. PSL_CA_DAYS and PSL_SERVER_DAYS set how long they are valid (3650 and 365 days).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 FOLDER NAME_OR_ADDRESS...   (what nodes connect to, such as lower.example or 192.0.2.7)" >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder"
cd "$folder"
umask 077

names=""
for given in "$@"; do
    # Clients look for an address among the addresses, and for a name among the names.
    if [[ $given =~ ^[0-9.]+$|: ]]; then kind=IP; else kind=DNS; fi
    names+="${names:+,}$kind:$given"
done

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2> /dev/null; }

if [ ! -e ca.key ]; then
    new_key ca.key
    openssl req -x509 -new -key ca.key -sha256 -days "${PSL_CA_DAYS:-3650}" -subj "/CN=psl-flower authority" \
        -config <(echo "[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash") -extensions ca -out ca.crt
fi

new_key server.key
openssl req -new -key server.key -subj "/CN=$1" -config <(printf '[req]\ndistinguished_name = name\n[name]\n') |
    openssl x509 -req -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -sha256 \
        -days "${PSL_SERVER_DAYS:-365}" -out server.pem -extfile <(echo "basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names") 2> /dev/null
chmod 644 ca.crt server.pem
openssl verify -CAfile ca.crt server.pem > /dev/null
until=$(openssl x509 -in server.pem -noout -enddate)
echo "$PWD: ca.crt, server.pem and server.key for $names, valid until ${until#*=}"
