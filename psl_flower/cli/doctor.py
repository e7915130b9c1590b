"""The command `psl doctor`: what can be checked on a node or a server before a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from psl_flower.cli.output import Json, say
from psl_flower.text import counted, expanded

if TYPE_CHECKING:
    from psl_flower.system.findings import Finding


def doctor(
    superlink: Annotated[str, typer.Option(help="HOST:PORT at which nodes reach the SuperLink.")] = "",
    root_certificates: Annotated[Path | None, typer.Option(help="ca.crt that nodes trust.")] = None,
    exchange: Annotated[str, typer.Option(help="On a node: HOST:PORT of the exchange endpoint.")] = "",
    auth_key: Annotated[Path | None, typer.Option(help="On a node: its --auth-supernode-private-key.")] = None,
    store: Annotated[list[str] | None, typer.Option(help="On a node: patch store; repeatable.")] = None,
    key: Annotated[Path | None, typer.Option(help="On a node: private key of sealed stores.")] = None,
    passphrase_file: Annotated[Path | None, typer.Option(help="File whose first line is the key's passphrase.")] = None,
    owner: Annotated[str, typer.Option(help="On a node: public key of the owner to trust (or file).")] = "",
    description: Annotated[
        Path | None, typer.Option(help="Of the stores: manifest.psl, or the run's manifest.json.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="On a node: folder of its states.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="On the server: server.pem of the SuperLink.")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="On the server: server.key.")] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(help="On the server: name or address that nodes connect to; repeatable."),
    ] = None,
    exchange_listen: Annotated[str, typer.Option(help="On the server: exchange-host:exchange-port.")] = "",
    exchange_ca: Annotated[Path | None, typer.Option(help="Authority of the streams: a node's exchange-ca.")] = None,
    exchange_client_ca: Annotated[Path | None, typer.Option(help="On the server: the setting of that name.")] = None,
    exchange_cert: Annotated[Path | None, typer.Option(help="The setting, or the node's, of that name.")] = None,
    exchange_key: Annotated[Path | None, typer.Option(help="Private key of --exchange-cert.")] = None,
    workspace: Annotated[Path | None, typer.Option(help="On the server: folder of stores and runs.")] = None,
    device: Annotated[str, typer.Option(help='The setting device: "auto", "cpu", "cuda", "cuda:N".')] = "auto",
    as_json: Json = False,
) -> None:
    """Check a node or a server before a run; changes nothing. Exit status 1 if a run would fail.

    Checks what you name, and always versions, memory and device. With --address the certificates are the server's.
    """
    of_stores = {"--key": key, "--passphrase-file": passphrase_file, "--owner": owner, "--description": description}
    if (exchange_cert is None) != (exchange_key is None):
        raise typer.BadParameter("--exchange-cert and --exchange-key belong together; give both")
    if not store and (unchecked := [name for name, value in of_stores.items() if value]):
        raise typer.BadParameter(f"{' and '.join(unchecked)}: checked with a store alone; name it with --store")
    authorities = {"exchange-ca": exchange_ca, "exchange-client-ca": exchange_client_ca}
    checks = (
        _check_certificates(root_certificates, certificate, certificate_key, address or (), auth_key),
        _check_stream_certificates(authorities, exchange_cert, exchange_key, address or ()),
        _check_network(superlink, root_certificates, exchange, exchange_listen),
        _check_stores(store or (), key, passphrase_file, owner, description),
        _check_machine({"state": state, "workspace": workspace}, device),
    )
    _report(chain(_check_installation(), *checks), as_json)


def _check_installation() -> Iterator[list[Finding]]:
    from psl_flower.doctor import machine, versions

    yield versions.check_versions()
    yield machine.check_memory()


def _check_certificates(
    root: Path | None, certificate: Path | None, key: Path | None, address: Sequence[str], auth_key: Path | None
) -> Iterator[list[Finding]]:
    from psl_flower.wire import certificates

    if root is not None:
        yield certificates.check_authority(root)
    if certificate is not None:
        yield certificates.check_server_certificate(certificate, key, address, root)
    if auth_key is not None:
        yield certificates.check_node_key(auth_key)


def _check_stream_certificates(
    authorities: Mapping[str, Path | None], certificate: Path | None, key: Path | None, address: Sequence[str]
) -> Iterator[list[Finding]]:
    from psl_flower.wire import certificates

    for name, authority in authorities.items():
        if authority is not None:
            yield certificates.check_authority(authority, name)
    if certificate is not None and key is not None:
        role: Literal["server", "node"] = "server" if address else "node"
        yield certificates.check_exchange_certificate(certificate, key, role, address)


def _check_network(superlink: str, root: Path | None, exchange: str, exchange_listen: str) -> Iterator[list[Finding]]:
    from psl_flower.doctor import network

    if superlink:
        yield network.check_superlink(superlink, root)
    if exchange:
        yield network.check_exchange(exchange)
    if exchange_listen:
        yield network.check_exchange_port(exchange_listen)


def _check_stores(
    places: Sequence[str], key: Path | None, passphrase_file: Path | None, owner: str, description: Path | None
) -> Iterator[list[Finding]]:
    from psl_flower.doctor import stores

    for place in places:
        yield stores.check_store(place, key, passphrase_file, owner, description)


def _check_machine(folders: Mapping[str, Path | None], device: str) -> Iterator[list[Finding]]:
    from psl_flower.doctor import machine

    for name, folder in folders.items():
        if folder is not None:
            yield machine.check_folder(name, expanded(folder, f"--{name}"))
    yield machine.check_device(device)


def _report(checks: Iterable[list[Finding]], as_json: bool) -> None:
    """Print the findings, each at once, since a silent machine takes its time; exit with 1 if a check failed."""
    findings: list[Finding] = []
    for some in checks:
        findings += some
        if not as_json:
            for finding in some:
                for line in _lines(finding):
                    say(line)
    failures = sum(finding.level == "failed" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failures, "findings": [finding._asdict() for finding in findings]}))
    elif failures:
        say(f"{failures} of {counted(len(findings), 'check')} failed", err=True)
    if failures:
        raise typer.Exit(1)


def _lines(finding: Finding) -> list[str]:
    do = [f"{'':9}-> {finding.do}"] if finding.do else []
    return [f"{finding.level:8} {finding.what}: {finding.found}", *do]
