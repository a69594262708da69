"""Regenerates the committed protobuf code. Never runs when farsum is built, installed or imported.

The generator is pinned to an old release on purpose: code from grpcio-tools 1.71.2 (protobuf gencode
5.29) runs on protobuf 5.29 to 7.x, code from a newer one on newer runtimes only. Its own pins
conflict with ours, so it lives in a virtual environment of its own under build/.

    python proto/generate.py            write the files
    python proto/generate.py --check    exit 1 and say what differs if they are stale
"""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

GENERATOR = "grpcio-tools==1.71.2"
# grpcio-tools imports pkg_resources, which newer setuptools no longer has.
EXTRA = "setuptools<81"
ROOT = Path(__file__).resolve().parent
TOOLS = ROOT.parent / "build" / "proto-tools"
PROTOS = ("farsum_proto/v1/farsum.proto", "farsum_proto/v1/worker.proto")


def generator() -> Path:
    """The Python that has the pinned generator; made on first use."""
    python = TOOLS / "bin" / "python"
    stamp = TOOLS / "installed"
    if not stamp.exists() or stamp.read_text() != GENERATOR:
        venv.create(TOOLS, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", GENERATOR, EXTRA], check=True)
        stamp.write_text(GENERATOR)
    return python


def generate(into: Path) -> None:
    """Write the generated files of all protos below a folder."""
    flags = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [generator(), "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{ROOT}", *flags, *PROTOS],
        check=True,
        # Our own import path must not leak into the generator's environment.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        cwd=ROOT,
    )
    for path in into.rglob("*_pb2_grpc.py"):
        # worker.proto declares no service, and an empty stub file would only need explaining.
        if "add_" not in path.read_text():
            path.unlink()


def stale(fresh: Path) -> list[str]:
    """What differs between a fresh generation and the committed files, one entry per file."""
    wanted = {p.relative_to(fresh): p.read_text() for p in sorted(fresh.rglob("*_pb2*"))}
    committed = {
        p.relative_to(ROOT): p.read_text() for p in sorted((ROOT / "farsum_proto").rglob("*_pb2*.py*"))
    }
    committed = {p: text for p, text in committed.items() if "__pycache__" not in p.parts}
    found = []
    for path in sorted(wanted.keys() | committed.keys()):
        old, new = committed.get(path, ""), wanted.get(path, "")
        if old != new:
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), "committed", "generated", lineterm="", n=1
            )
            changed = [line[:160] for line in lines]
            found.append("\n".join([f"{path}: {len(changed)} lines of diff", *changed[:20]]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the files are stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        differences = stale(Path(folder))
    for difference in differences:
        print(difference)
    if differences:
        print("The generated code is stale: run `python proto/generate.py` and commit what it writes.")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
