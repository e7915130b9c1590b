#!/usr/bin/env bash
# Makes the SuperLink's TLS files: a certificate authority of your own, and the server's certificate and key.
#
#     make-certificates.sh FOLDER NAME_OR_ADDRESS...
#     make-certificates.sh FOLDER --node NAME
#
# Give FOLDER/ca.crt to nodes and to whoever calls `flwr`, and to the server also server.pem and server.key. The second
# form makes NAME.pem and NAME.key, with which a node proves itself on the exchange port under mutual TLS. Keep
# FOLDER/ca.key off the server. Call this again to renew a certificate; it keeps the authority. PSL_CA_DAYS,
# PSL_SERVER_DAYS and PSL_NODE_DAYS set how long certificates are valid (3650, 365 and 365 days).
set -euo pipefail

if [ $# -lt 2 ] || { [ "$2" = --node ] && [ $# -ne 3 ]; }; then
    echo "usage: $0 FOLDER NAME_OR_ADDRESS...   (what nodes connect to, such as lower.example or 192.0.2.7)" >&2
    echo "       $0 FOLDER --node NAME          (a node's own, for mutual TLS on the exchange port)" >&2
    exit 2
fi
folder=$1
shift
if [ "$1" = --node ]; then
    [[ $2 =~ ^[A-Za-z0-9._-]+$ && ! $2 =~ ^(ca|server)$ ]] || { echo "$0: $2 cannot be a node's name" >&2; exit 2; }
    own=$2 usage=clientAuth days=${PSL_NODE_DAYS:-365}
    set -- "$2"
else
    own=server usage=serverAuth days=${PSL_SERVER_DAYS:-365}
    # A SuperLink that listens on all addresses is reached by its own helpers at these, and starts no run without them.
    for loopback in 127.0.0.1 ::1; do
        [[ " $* " == *" $loopback "* ]] || set -- "$@" "$loopback"
    done
fi
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

if [ ! -e ca.key ] || [ ! -e ca.crt ]; then
    [ ! -e ca.key ] || { echo "$0: $PWD has ca.key and no ca.crt; restore it, or begin in another folder" >&2; exit 1; }
    new_key ca.key.new
    openssl req -x509 -new -key ca.key.new -sha256 -days "${PSL_CA_DAYS:-3650}" -subj "/CN=psl-flower authority" \
        -config <(echo "[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash") -extensions ca -out ca.crt
    mv ca.key.new ca.key
fi

new_key "$own.key"
openssl req -new -key "$own.key" -subj "/CN=$1" -config <(printf '[req]\ndistinguished_name = name\n[name]\n') |
    openssl x509 -req -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -sha256 \
        -days "$days" -out "$own.pem" -extfile <(echo "basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $usage
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names") 2> /dev/null
chmod 644 ca.crt "$own.pem"
openssl verify -CAfile ca.crt "$own.pem" > /dev/null
until=$(openssl x509 -in "$own.pem" -noout -enddate)
echo "$PWD: ca.crt, $own.pem and $own.key for $names, valid until ${until#*=}"
