"""The command `psl doctor`: what can be checked on a node or a server before a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from psl_flower.cli.output import Json, say
from psl_flower.text import counted, expanded

if TYPE_CHECKING:
    from psl_flower.system.findings import Finding


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor")(doctor)


def doctor(
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink, as nodes are told.")] = "",
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

    What is not named is not looked at. Versions, memory and device always are. With --address the certificates are
    those of the server.
    """
    if (exchange_cert is None) != (exchange_key is None):
        raise typer.BadParameter("--exchange-cert and --exchange-key belong together; give both")
    from psl_flower.doctor import machine, network, stores, versions
    from psl_flower.wire import certificates

    def checks() -> Iterator[list[Finding]]:
        yield versions.check_versions()
        yield machine.check_memory()
        if root_certificates is not None:
            yield certificates.check_authority(root_certificates)
        if certificate is not None:
            yield certificates.check_server_certificate(certificate, certificate_key, address or (), root_certificates)
        if auth_key is not None:
            yield certificates.check_node_key(auth_key)
        for what, authority in (("exchange-ca", exchange_ca), ("exchange-client-ca", exchange_client_ca)):
            if authority is not None:
                yield certificates.check_authority(authority, what)
        if exchange_cert is not None and exchange_key is not None:
            role: Literal["server", "node"] = "server" if address else "node"
            yield certificates.check_exchange_certificate(exchange_cert, exchange_key, role, address or ())
        if superlink:
            yield network.check_superlink(superlink, root_certificates)
        if exchange:
            yield network.check_exchange(exchange)
        if exchange_listen:
            yield network.check_exchange_port(exchange_listen)
        for place in store or ():
            yield stores.check_store(place, key, passphrase_file, owner, description)
        for what, folder in (("state", state), ("workspace", workspace)):
            if folder is not None:
                yield machine.check_folder(what, expanded(folder, f"--{what}"))
        yield machine.check_device(device)

    findings: list[Finding] = []
    for some in checks():
        findings += some
        if not as_json:
            # Each as it comes: a silent machine takes its time.
            for finding in some:
                for line in _lines(finding):
                    say(line)
    if as_json:
        typer.echo(json.dumps({"ok": not _failures(findings), "findings": [f._asdict() for f in findings]}))
    elif _failures(findings):
        say(f"{_failures(findings)} of {counted(len(findings), 'check')} failed", err=True)
    if _failures(findings):
        raise typer.Exit(1)


def _failures(findings: list[Finding]) -> int:
    return sum(finding.level == "failed" for finding in findings)


def _lines(finding: Finding) -> list[str]:
    do = [f"{'':9}-> {finding.do}"] if finding.do else []
    return [f"{finding.level:8} {finding.what}: {finding.found}", *do]
