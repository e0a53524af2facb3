"""`longcat serve`: the OpenAI API over HTTP."""

from __future__ import annotations

import argparse
import os

from longcat.cli.engine_options import Place, add_engine_arguments, follow, join_ranks, open_engine
from longcat.cli.parser import UsageError, integer, number
from longcat.support.hub import local_checkpoint
from longcat.support.names import install_command

_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, "serve")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    server.add_argument(
        "--port",
        type=integer(0, 65535),
        default=8000,
        help="port to listen on, of the first replica; 0: any free port (default 8000)",
    )
    server.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="names of the model in requests (default: the folder's)"
    )
    server.add_argument(
        "--api-key",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="keys that clients must send; also LONGCAT_API_KEY (default: open to all)",
    )
    server.add_argument(
        "--cors-origin",
        "--allowed-origins",
        nargs="+",
        action="extend",
        default=[],
        metavar="ORIGIN",
        help="origins of web pages that may call: *, https://example.org, or a JSON list of them",
    )
    server.add_argument(
        "--allowed-host",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="more values of the header Host that are accepted; * for all (default: on a loopback "
        "address localhost, 127.0.0.1 and [::1], elsewhere all)",
    )
    server.add_argument(
        "--max-connections",
        type=integer(1),
        default=16384,
        metavar="CONNECTIONS",
        help="maximum number of open connections, if the limit of open files allows (default 16384)",
    )
    server.add_argument(
        "--max-body-size",
        type=integer(1),
        default=32 << 20,
        metavar="BYTES",
        help="maximum size of a request's body (default 32 MiB)",
    )
    server.add_argument(
        "--max-header-size",
        type=integer(1),
        default=16 << 10,
        metavar="BYTES",
        help="maximum size of a request's headers (default 16 KiB)",
    )
    server.add_argument(
        "--max-stored-size",
        type=integer(0),
        default=64 << 20,
        metavar="BYTES",
        help="memory for responses that previous_response_id can name (default 64 MiB)",
    )
    server.add_argument(
        "--max-logprobs",
        type=integer(0),
        default=20,
        metavar="TOKENS",
        help="maximum logprobs of a request (default 20)",
    )
    server.add_argument(
        "--max-stop-strings",
        type=integer(0),
        default=16,
        metavar="TEXTS",
        help="maximum number of stop strings of a request (default 16)",
    )
    server.add_argument(
        "--grammar-timeout",
        type=number(0, above=True),
        default=2.0,
        metavar="SECONDS",
        help="maximum processor time to compile one grammar (default 2)",
    )
    server.add_argument(
        "--send-timeout",
        type=number(0, above=True),
        default=30.0,
        metavar="SECONDS",
        help="time after which a client that reads nothing is disconnected (default 30)",
    )
    server.add_argument(
        "--shutdown-timeout",
        type=number(0),
        default=30.0,
        metavar="SECONDS",
        help="time for requests to finish after SIGTERM (default 30)",
    )
    server.add_argument(
        "--log-level", choices=_LOG_LEVELS, default="info", help="lowest severity that is logged (default info)"
    )
    server.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="format of the log: text, or one JSON object on each line (default text)",
    )
    server.add_argument(
        "--disable-access-log",
        "--disable-uvicorn-access-log",
        action="store_true",
        help="do not log a line for each request",
    )
    server.add_argument(
        "--disable-log-stats", action="store_true", help="do not log a summary every 10 s while requests run"
    )
    server.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="URL for OpenTelemetry spans by OTLP over HTTP, as http://127.0.0.1:4318/v1/traces",
    )
    for name, text in [
        ("ssl-keyfile", "private key: serve HTTPS"),
        ("ssl-certfile", "certificate: serve HTTPS"),
        ("ssl-ca-certs", "accept only clients with a certificate of these authorities"),
        ("ssl-keyfile-password", "password of the private key"),
    ]:
        server.add_argument(f"--{name}", metavar="FILE" if "password" not in name else "TEXT", help=text)


def run(args: argparse.Namespace) -> int:
    import longcat._core as _core

    args.model = _model_folder(args)
    if args.gpu_memory_utilization is not None and not _core.resolved_device(args.device).startswith("cuda"):
        args.ignored = [*(args.ignored or []), "--gpu-memory-utilization (on the CPU)"]
    place = join_ranks(args)
    args.model = local_checkpoint(os.path.expanduser(args.model))
    if bool(args.ssl_keyfile) != bool(args.ssl_certfile):
        raise ValueError("--ssl-keyfile and --ssl-certfile go together: give both")
    if args.ssl_ca_certs and not args.ssl_certfile:
        raise ValueError("--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile: without them the server speaks no TLS")
    import ssl

    try:
        from longcat.server import logs
        from longcat.server.run import bind, check_tls
        from longcat.server.run import run as serve
    except ImportError as error:
        raise ValueError(f"serving needs more packages ({error}): {install_command('server')}") from None
    from longcat.server.settings import ServerSettings, origins, served_name

    names = args.served_model_name or [served_name(args.model)]
    keys = [*args.api_key, *filter(None, [os.environ.get("LONGCAT_API_KEY")])]
    settings = ServerSettings(
        tuple(names),
        tuple(keys),
        origins(args.cors_origin),
        max_body_bytes=args.max_body_size,
        max_header_bytes=args.max_header_size,
        max_stored_bytes=args.max_stored_size,
        max_logprobs=args.max_logprobs,
        max_stop_strings=args.max_stop_strings,
        grammar_timeout=args.grammar_timeout,
        send_timeout=args.send_timeout,
        shutdown_timeout=args.shutdown_timeout,
        traces_endpoint=args.otlp_traces_endpoint,
        access_log=not args.disable_access_log,
        allowed_hosts=tuple(args.allowed_host),
        max_connections=args.max_connections,
        max_completions=(args.max_num_queued + 1) // 2,
    )
    if args.ssl_certfile:
        check_tls(args.ssl_certfile, args.ssl_keyfile, args.ssl_keyfile_password, args.ssl_ca_certs)
    port = args.port and args.port + place.replica
    if port > 65535:
        raise UsageError(f"[serve] --port {args.port} puts replica {place.replica} on {port}; expected 65535 at most")
    sock = bind(args.host, port) if place.rank == 0 else None
    options = logs.LogOptions(args.log_level, args.log_format, summary=not args.disable_log_stats)
    logs.set_up(options)
    if args.ignored and place == Place():
        logs.log.warning("ignored, without effect here: %s", ", ".join(dict.fromkeys(args.ignored)))
    args.ignored = None
    with open_engine(args) as engine:
        if sock is None:
            return follow(engine)
        engine.tokenizer  # noqa: B018  (a checkpoint without one fails now)
        if args.chat_template is not None:
            engine.chat_template  # noqa: B018  (a malformed one fails now)
        for line in logs.banner(args.model, engine.info(), settings, args.max_num_seqs):
            logs.log.info("%s", line)
        return serve(
            engine,
            settings,
            sock,
            options,
            ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs,
            ssl_keyfile_password=args.ssl_keyfile_password,
            ssl_cert_reqs=ssl.CERT_REQUIRED if args.ssl_ca_certs else ssl.CERT_NONE,
        )


def _model_folder(args: argparse.Namespace) -> str:
    """Returns the checkpoint folder, and raises UsageError unless it is given once.

    In `--served-model-name a b FOLDER` argparse takes the folder for a value of the flag, so it is looked for there,
    too.
    """
    if args.model is None and args.model_path is None:
        for values in (args.served_model_name, args.api_key, args.cors_origin):
            if values is not None and len(values) > 1 and os.path.isdir(os.path.expanduser(values[-1])):
                return str(values.pop())
    if (args.model is None) == (args.model_path is None):
        found = "no checkpoint folder" if args.model is None else f"two, {args.model} and {args.model_path}"
        raise UsageError(f"[serve] found {found}; expected one: longcat serve FOLDER, or --model FOLDER")
    return str(args.model or args.model_path)
