"""`longcat serve`: the OpenAI API over HTTP."""

from __future__ import annotations

import argparse
import os
import ssl
import sys

from longcat.cli.engine_options import Place, add_engine_arguments, follow, join_ranks, open_engine

# Flags of other engines that say here what goes without saying, or what this engine has no use for.
_IGNORED_SWITCHES = (
    "trust-remote-code", "enable-auto-tool-choice", "skip-server-warmup", "disable-log-requests", "disable-log-stats",
    "enable-log-requests", "enforce-eager", "disable-cuda-graph", "enable-chunked-prefill",
    "enable-metrics", "disable-frontend-multiprocessing", "enable-expert-parallel", "enable-p2p-check",
    "disable-custom-all-reduce", "enable-torch-compile", "enable-mixed-chunk",
)  # fmt: skip
_IGNORED_OPTIONS = (
    "tool-call-parser", "reasoning-parser", "attention-backend", "moe-runner-backend", "chat-template-content-format",
    "load-format", "tokenizer-mode", "cuda-graph-max-bs",
    "chunked-prefill-size", "swap-space", "log-level", "uvicorn-log-level", "schedule-policy", "watchdog-timeout",
    "distributed-executor-backend", "block-size", "page-size", "revision", "download-dir", "guided-decoding-backend",
    "structured-outputs-config", "grammar-backend",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, is_server=True)
    engine = parser.add_argument_group("requests")
    engine.add_argument("--max-running-requests", "--max-num-seqs", type=int, default=16, metavar="N",
                        help="requests that run at once (default 16)")  # fmt: skip
    engine.add_argument("--max-queued-requests", type=int, default=4096, metavar="N",
                        help="requests that wait; more get status 429 (default 4096)")  # fmt: skip
    engine.add_argument("--max-num-batched-tokens", type=int, metavar="N",
                        help="most tokens of a step (default 512, on CUDA 8192)")  # fmt: skip
    engine.add_argument("--no-enable-prefix-caching", "--disable-radix-cache", action="store_true",
                        help="share nothing between requests that begin alike")  # fmt: skip
    engine.add_argument("--chat-template", metavar="FILE", help="a template in place of the checkpoint's")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    server.add_argument("--port", type=int, default=8000, help="(default 8000; 0: any); of the first replica")
    server.add_argument("--served-model-name", nargs="+", metavar="NAME", help="names of the model in requests")
    server.add_argument("--api-key", nargs="+", action="extend", default=[], metavar="KEY",
                        help="keys that open the server; also LONGCAT_API_KEY (default: open)")  # fmt: skip
    server.add_argument("--cors-origin", "--allowed-origins", nargs="+", action="extend", default=[], metavar="ORIGIN",
                        help="web pages that may call, as https://example.org")  # fmt: skip
    server.add_argument("--max-body-size", type=int, default=32 << 20, metavar="BYTES", help="(default 32 MiB)")
    server.add_argument("--max-header-size", type=int, default=16 << 10, metavar="BYTES", help="(default 16 KiB)")
    server.add_argument("--max-logprobs", type=int, default=20, metavar="N", help="of a request (default 20)")
    server.add_argument("--max-stop-strings", type=int, default=16, metavar="N", help="of a request (default 16)")
    server.add_argument("--grammar-timeout", type=float, default=2.0, metavar="S", help="to compile one (default 2)")
    server.add_argument("--send-timeout", type=float, default=30.0, metavar="S",
                        help="a client that takes nothing for so long is cut off (default 30)")  # fmt: skip
    server.add_argument("--shutdown-timeout", type=float, default=30.0, metavar="S",
                        help="for requests to finish after SIGTERM (default 30)")  # fmt: skip
    server.add_argument("--disable-access-log", action="store_true", help="no line of JSON for each request")
    for name, text in [
        ("ssl-keyfile", "private key: serve HTTPS"),
        ("ssl-certfile", "certificate"),
        ("ssl-ca-certs", "accept only clients with a certificate of these authorities"),
        ("ssl-keyfile-password", "of the private key"),
    ]:
        server.add_argument(f"--{name}", metavar="FILE" if "password" not in name else "TEXT", help=text)
    for name in _IGNORED_SWITCHES:
        flag = f"--{name}"
        parser.add_argument(flag, action="append_const", const=flag, dest="ignored", help=argparse.SUPPRESS)
    for name in _IGNORED_OPTIONS:
        parser.add_argument(f"--{name}", action=_Ignored, dest="ignored", help=argparse.SUPPRESS)


class _Ignored(argparse.Action):
    """Remembers that the flag was given."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), self.option_strings[0]])


def run(args: argparse.Namespace) -> int:
    if (args.model is None) == (args.model_path is None):
        raise ValueError("the checkpoint folder is expected once: longcat serve FOLDER, or --model FOLDER")
    args.model = args.model or args.model_path
    if args.gpu_memory_utilization is not None and not args.device.startswith("cuda"):
        args.ignored = [*(args.ignored or []), "--gpu-memory-utilization (on the CPU)"]
    place = join_ranks(args)
    for flag in args.ignored or () if place == Place() else ():
        print(f"longcat: {flag} has no meaning here and is ignored", file=sys.stderr)
    if bool(args.ssl_keyfile) != bool(args.ssl_certfile):
        raise ValueError("--ssl-keyfile and --ssl-certfile go together: give both")
    if args.ssl_ca_certs and not args.ssl_certfile:
        raise ValueError("--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile: without them the server speaks no TLS")
    try:
        from longcat.server.run import bind, check_tls
        from longcat.server.run import run as serve
    except ImportError as error:
        raise ValueError(f"serving needs more packages ({error}): pip install 'longcat[server]'") from None
    from longcat.server.settings import ServerSettings

    names = args.served_model_name or [os.path.basename(os.path.abspath(args.model))]
    keys = [*args.api_key, *filter(None, [os.environ.get("LONGCAT_API_KEY")])]
    settings = ServerSettings(
        tuple(names), tuple(keys), tuple(args.cors_origin), max_body_bytes=args.max_body_size,
        max_header_bytes=args.max_header_size, max_logprobs=args.max_logprobs, max_stop_strings=args.max_stop_strings,
        grammar_timeout=args.grammar_timeout, send_timeout=args.send_timeout, shutdown_timeout=args.shutdown_timeout,
        access_log=not args.disable_access_log,
    )  # fmt: skip
    if args.ssl_certfile:
        check_tls(args.ssl_certfile, args.ssl_keyfile, args.ssl_keyfile_password, args.ssl_ca_certs)
    sock = bind(args.host, args.port and args.port + place.replica) if place.rank == 0 else None
    with open_engine(
        args, max_num_seqs=args.max_running_requests, max_num_queued=args.max_queued_requests,
        max_num_batched_tokens=args.max_num_batched_tokens, chat_template=args.chat_template,
        enable_prefix_caching=not args.no_enable_prefix_caching,
    ) as engine:  # fmt: skip
        if sock is None:
            return follow(engine)
        engine.tokenizer  # noqa: B018  (a checkpoint without one fails now)
        return serve(
            engine, settings, sock, ssl_keyfile=args.ssl_keyfile, ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs, ssl_keyfile_password=args.ssl_keyfile_password,
            **({"ssl_cert_reqs": ssl.CERT_REQUIRED} if args.ssl_ca_certs else {}),
        )  # fmt: skip
