"""The command `farsum`. Parses words and prints sentences; everything it starts is imported when asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from farsum_kernels.errors import FarsumError

if TYPE_CHECKING:
    from pydantic_settings import CliSettingsSource

DEFAULT_TARGET = "grpc://localhost:50051"
_EXTRAS = (
    'farsum: the server is not installed in this environment ({missing} is missing).\n'
    '  pip install "farsum[server]"'
)  # fmt: skip

# gRPC's older way to read from sockets: for each message it wakes three threads less (docs/decisions/0013).
_POLLING = "-event_engine_listener"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="farsum", description="Reductions of formulas over pairs of points, on this machine or another."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    serve = commands.add_parser(
        "serve", help="serve reductions on this machine (loopback only)", add_help=False
    )
    ping = commands.add_parser("ping", help="ask a server who it is", description="Ask a server who it is.")
    ping.add_argument("target", nargs="?", default=os.environ.get("FARSUM_TARGET", DEFAULT_TARGET),
                      help=f"default: FARSUM_TARGET, else {DEFAULT_TARGET}")  # fmt: skip
    doctor = commands.add_parser(
        "doctor", help="look for what is wrong, and say how to repair it",
        description="Look at this machine, the settings of its server and a server elsewhere. Exit status 1 if something failed.",
    )  # fmt: skip
    doctor.add_argument("target", nargs="?", default=os.environ.get("FARSUM_TARGET"),
                        help="a server to ask, such as grpc://localhost:50051; default: FARSUM_TARGET")  # fmt: skip
    doctor.add_argument("--config", type=Path, default=os.environ.get("FARSUM_CONFIG"), metavar="FILE",
                        help="a TOML file with the server's settings; also FARSUM_CONFIG")  # fmt: skip
    doctor.add_argument(
        "--json", action="store_true", help="for machines: each check with its state and error"
    )
    run = commands.add_parser(
        "run", help="run a script written for pykeops, as it is", usage="farsum run [--target TARGET] (script | -m module) [arguments]",
        description="Run a Python script or module with `import pykeops` answered by farsum.",
    )  # fmt: skip
    run.add_argument("--target", help="where its work goes; default: FARSUM_TARGET, else this process")
    run.add_argument("-m", dest="module", action="store_true", help="run a module instead of a file")
    # From the first word on, all is the script's: its options are not ours.
    run.add_argument("script", nargs=argparse.PARSER, help="the script, or the module, and its arguments")
    if arguments[:1] == ["serve"]:
        return _serve(serve, arguments[1:])
    if arguments[:1] == ["run"]:
        return _run(run.parse_args(arguments[1:]))
    wanted = parser.parse_args(arguments)
    if wanted.command == "doctor":
        from farsum_server.doctor import doctor as examine

        return examine(wanted.target, wanted.config, wanted.json)
    return _ping(wanted.target)


def _ping(target: str) -> int:
    # This command is the client's; the server's package must not import it by name at load time.
    import importlib

    try:
        answer = importlib.import_module("farsum").ping(target)
    except FarsumError as error:
        print(f"farsum: {error}", file=sys.stderr)
        return 1
    print(f"{target}: farsum {answer['version']}, {answer['round_trip_s'] * 1e3:.2f} ms")
    for device in answer["devices"]:
        print(
            f"  {device['kind']}: {device['name']}, {device['threads']} threads, {device['restarts']} restarts"
        )
    return 0


def _run(wanted: argparse.Namespace) -> int:
    import importlib

    status: int = importlib.import_module("farsum.run").run(wanted.script, wanted.module, wanted.target)
    return status


def _serve(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    os.environ.setdefault("GRPC_EXPERIMENTS", _POLLING)  # which gRPC reads when it is imported
    try:
        from pydantic import ValidationError
        from pydantic_settings import CliApp, CliSettingsSource, SettingsError

        from farsum_server.app import serve
        from farsum_server.logs import configure_logs
        from farsum_server.settings import settings_from
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("farsum"):
            raise
        print(_EXTRAS.format(missing=error.name), file=sys.stderr)
        return 1
    file = _config_file(arguments)
    kind = settings_from(file)
    parser.prog = "farsum serve"
    parser.description = kind.__doc__
    parser.epilog = (
        "Each setting is also read from the environment (FARSUM_PORT) and from a TOML file (port = 50051)."
    )
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with settings; also FARSUM_CONFIG")
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        kind, root_parser=parser, cli_kebab_case=True, cli_hide_none_type=True, cli_implicit_flags=True
    )
    try:
        parsed = parser.parse_args(arguments)
        settings = CliApp.run(kind, cli_args=parsed, cli_settings_source=source)
    except (ValidationError, SettingsError) as error:
        print(f"farsum serve: {plain(error)}", file=sys.stderr)
        return 2
    configure_logs(settings.log_level)
    try:
        serve(settings)
    except FarsumError as error:
        print(f"farsum serve: {error}", file=sys.stderr)
        return 1
    return 0


def _config_file(arguments: list[str]) -> Path | None:
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config", default=os.environ.get("FARSUM_CONFIG"))
    found = before.parse_known_args(arguments)[0].config
    if found and not Path(found).is_file():
        before.exit(2, f"farsum serve: there is no file {found}\n")
    return Path(found) if found else None


def plain(error: Exception) -> str:
    """What is wrong with settings, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


if __name__ == "__main__":
    sys.exit(main())
