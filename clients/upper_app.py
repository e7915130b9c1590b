"""The Upper node's ClientApp: says what it holds, trains over streams or single messages, gives its model if asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.host import Build, Host, build_engine, claim_of, is_simulated, own_stores, own_tls, simulation_slots
from psl_flower.engine.exchange import WireFormat, down_of
from psl_flower.engine.forgetful import ForgetfulUpper
from psl_flower.engine.streams import serve
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import FrameMismatch, PslError
from psl_flower.machine import forbid_core_dumps
from psl_flower.node_task import Claim, Failure, Inventory, NodeTask, StreamTicket, decode, encode
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.remote import answer
from psl_flower.wire.frames import decode_frame, frame_bytes
from psl_flower.wire.messages import Hello
from psl_flower.wire.stream import UpperStream, connect

_RECORD = "psl"
_LOWER = "the Lower"

Handler = Callable[[Message, Context], RecordDict]


def upper_app(build: Build = build_engine) -> ClientApp:
    """Return the ClientApp of an Upper node.

    Parameters
    ----------
    build : callable
        Makes the engine of one Upper; the default makes those of this app, another one serves models of your own.
    """
    app = ClientApp()

    @app.query("inventory")
    def inventory(message: Message, context: Context) -> Message:
        return _answer(message, context, _inventory)

    @app.query("claim")
    def claim(message: Message, context: Context) -> Message:
        return _answer(message, context, _claim)

    @app.train("stream")
    def stream(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda *given: _stream(*given, build))

    @app.query("step")
    def step(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda *given: _step(*given, build))

    @app.query("collect")
    def collect(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda *given: _collect(*given, build))

    @app.query("restore")
    def restore(message: Message, context: Context) -> Message:
        return _answer(message, context, _restore)

    return app


def _inventory(message: Message, context: Context) -> RecordDict:
    if is_simulated(context):
        partition, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        return _content(
            {"inventory": encode(Inventory(partition=partition, num_partitions=count, slots=simulation_slots()))}
        )
    own_tls(context)  # what is wrong with certificates is said at the start of the run
    claims = []
    for store in own_stores(context):
        claims.append(claim_of(store))
        store.close()
    return _content({"inventory": encode(Inventory(claims=tuple(claims)))})


def _claim(message: Message, context: Context) -> RecordDict:
    host = _host(message, context)
    claims: list[Claim] = []
    for m in host.task.uppers:
        store = host.open_store(m)
        claims.append(claim_of(store))
        store.close()
    return _content({"inventory": encode(Inventory(claims=tuple(claims)))})


def _stream(message: Message, context: Context, build: Build) -> RecordDict:
    """Open one stream for each Upper hosted here and serve them until the round is over."""
    host = _host(message, context)
    ticket = decode(_values(message).get("ticket"), StreamTicket, _LOWER)
    host.prepare_process()
    uppers: dict[int, tuple[UpperEngine, UpperStream]] = {}
    try:
        for m in host.task.uppers:
            engine = build(host.task.settings, m, host.open_store(m), host.checkpoints(m))
            try:
                engine.go_to(ticket.step, ticket.saved.get(m))
            except Exception as error:
                _report(host, ticket, engine, error)
                raise
            uppers[m] = (engine, _connect(host, ticket, engine))
        wire = _wire(host.task, next(iter(uppers.values()))[0])
        serve(uppers, wire, host.task.timeout_s)
    finally:
        for engine, stream in uppers.values():
            stream.close()
            engine.store.close()
    return _content({})


def _step(message: Message, context: Context, build: Build) -> RecordDict:
    """Do one step of every Upper hosted here, from its state on disk."""
    host = _host(message, context)
    host.prepare_process()
    received = _values(message)
    step = _steps(received.get("step"))
    answers: dict[str, bytes] = {}
    for m, engine in host.engines(build).items():
        frame = received.get(f"upper-{m}")
        if not isinstance(frame, bytes):
            raise FrameMismatch(f"{_LOWER}: expected a frame for Upper {m}, received none")
        upper = ForgetfulUpper(engine, host.checkpoints(m).folder / "live.pt")
        wire = _wire(host.task, engine)
        saved = _steps(received.get(f"saved-{m}")) if f"saved-{m}" in received else None
        down = decode_frame(bytearray(frame), wire.expect_down(upper.expected_shape(step, saved)), peer=_LOWER)
        answers[f"upper-{m}"] = frame_bytes(wire.up_frame(upper.handle(down_of(down))))
        engine.store.close()
    return _content(answers)


def _collect(message: Message, context: Context, build: Build) -> RecordDict:
    host = _host(message, context)
    received = _values(message)
    records: dict[str, ArrayRecord] = {}
    for m, engine in host.engines(build).items():
        engine.go_to(_steps(received.get(f"saved-{m}")))
        records[f"upper-{m}"] = ArrayRecord({name: value.cpu() for name, value in engine.model.state_dict().items()})
        engine.store.close()
    return RecordDict(records)


def _steps(value: object) -> int:
    if not isinstance(value, int):
        raise FrameMismatch(f"{_LOWER}: expected a number of steps, received {type(value).__name__}")
    return value


def _restore(message: Message, context: Context) -> RecordDict:
    """Answer an authorisation of restorers: log it, then seal the patches asked for to its recipients."""
    request = _values(message).get("request")
    if not isinstance(request, bytes):
        raise FrameMismatch(f"{_LOWER}: expected an authorisation, received {type(request).__name__}")
    answers: dict[str, bytes] = {}
    for opened, log in _host(message, context).sealed_stores():
        with closing(opened.store) as store:
            answers[f"upper-{store.meta.upper}"] = answer(request, opened.signed, store, opened.node, AuditLog(log))
    return _content(answers)


def _connect(host: Host, ticket: StreamTicket, engine: UpperEngine) -> UpperStream:
    meta = engine.store.meta
    hello = Hello(
        run=host.task.run,
        node=ticket.node,
        upper=meta.upper,
        positions=meta.positions,
        num_samples=len(engine.store),
        dataset=meta.dataset,
        token=ticket.tokens[meta.upper],
    )
    timeout_s, own = host.task.timeout_s, own_tls(host.context)
    return connect(ticket.host, ticket.port, hello, cafile_pem=ticket.cert_pem, timeout_s=timeout_s, own=own)


def _report(host: Host, ticket: StreamTicket, engine: UpperEngine, error: Exception) -> None:
    """Tell the Lower at once why this Upper does not take part, so that it need not wait for it."""
    with _connect(host, ticket, engine) as stream:
        failure = Failure.of(error)
        stream.fail(failure.kind, failure.message)


def _answer(message: Message, context: Context, handler: Handler) -> Message:
    """Let a handler make the reply; a failure that a user can meet becomes part of it, without a traceback."""
    forbid_core_dumps()  # every handler opens stores with the node's key
    try:
        content = handler(message, context)
    except PslError as error:
        content = _content({"failure": encode(Failure.of(error))})
    return Message(content, reply_to=message)


def _host(message: Message, context: Context) -> Host:
    return Host(context, decode(_values(message).get("task"), NodeTask, _LOWER))


def _wire(task: NodeTask, engine: UpperEngine) -> WireFormat:
    return WireFormat(activations=task.activations, gradients=task.gradients, dtype=engine.dtype)


def _values(message: Message) -> dict[str, object]:
    record = message.content.config_records.get(_RECORD)
    return dict(record) if record is not None else {}


def _content(values: dict[str, bytes]) -> RecordDict:
    return RecordDict({_RECORD: ConfigRecord(dict(values))})


app = upper_app()
