"""Three real problems on a real server, which this script starts and stops: `make demo`.

1. nearest neighbours on the handwritten digits that ship with scikit-learn
2. a palette of 16 colours for the photograph that ships with scikit-learn, by k-means
3. a Gaussian kernel sum over 50,000 x 50,000 pairs, against dense NumPy

    python examples/demo.py             everything, about a minute
    python examples/demo.py --quick     smaller sizes, a few seconds
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import farsum
from farsum.numpy import Vi, Vj

START_S = 60.0
STOP_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Three real problems on a real farsum server.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, a few seconds")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="where pictures and the log go"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    with server(options.output / "server.log") as target:
        farsum.connect(target)
        try:
            digits()
            palette(options.output, colours=16, most=8 if options.quick else 100)
            gaussian(5_000 if options.quick else 50_000)
        finally:
            farsum.disconnect()
    what_next(options.output)


# ── the server ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def server(log: Path) -> Iterator[str]:
    """A daemon on two free loopback ports, drained at the end; gives its address."""
    port, http_port = free_ports(2)
    command = [sys.executable, "-m", "farsum_server.cli", "serve"]
    command += ["--port", str(port), "--http-port", str(http_port)]
    say("server", f"starting: farsum serve --port {port} --http-port {http_port}")
    # A session of its own: Ctrl-C reaches this script alone, which then stops the server in order.
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        took = wait_ready(process, f"http://127.0.0.1:{http_port}/readyz", log)
        say("server", f"ready after {took:.1f} s, process {process.pid}, log in {log}")
        yield f"grpc://localhost:{port}"
    finally:
        stop(process, log)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> float:
    begun = time.perf_counter()
    while (waited := time.perf_counter() - begun) < START_S:
        if process.poll() is not None:
            sys.exit(f"the server ended with code {process.returncode} before it was ready:\n{tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return waited
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    sys.exit(f"the server was not ready within {START_S:.0f} s:\n{tail(log)}")


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"the server did not stop within {STOP_S:.0f} s of SIGTERM:\n{tail(log)}")
    if code:
        sys.exit(f"the server ended with code {code}:\n{tail(log)}")
    say("server", "drained and stopped")


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


# ── the problems ────────────────────────────────────────────────────────────────────────────────


def digits() -> None:
    """Each unknown digit takes the vote of its five nearest known ones."""
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels.astype(np.float32), labels, test_size=0.25, random_state=0)
    known, unknown, known_labels, truth = split
    say(
        "digits",
        f"{len(unknown)} unknown and {len(known)} known handwritten digits of {known.shape[1]} pixels",
    )

    begun = time.perf_counter()
    nearest = Vi(unknown).sqdist(Vj(known)).argKmin(5, dim=1)
    took = time.perf_counter() - begun

    votes = np.apply_along_axis(np.bincount, 1, known_labels[nearest], minlength=10)
    accuracy = float((votes.argmax(1) == truth).mean())
    say(
        "digits",
        f"accuracy {accuracy:.1%} by 5 nearest neighbours, in {1e3 * took:.0f} ms (compiling included)",
    )
    if accuracy < 0.95:
        sys.exit("the neighbours are wrong: this should be at least 95 %")


def palette(folder: Path, colours: int, most: int) -> None:
    """Lloyd's k-means. The photograph is sent once; each step sends 16 colours and gets labels back."""
    before = load_sample_image("china.jpg")
    pixels = before.reshape(-1, 3).astype(np.float32) / 255
    say(
        "palette",
        f"china.jpg: {before.shape[1]} x {before.shape[0]}, {len(pixels):,} pixels, to {colours} colours",
    )

    rng = np.random.default_rng(0)
    centres = pixels[rng.choice(len(pixels), colours, replace=False)]
    x_i = Vi(pixels)
    begun = time.perf_counter()
    done, shift = 0, 1.0
    with tqdm(total=most, desc="  palette  k-means steps", unit="step", file=sys.stdout, leave=False) as bar:
        while done < most and shift > 0.1 / 255:
            label = x_i.sqdist(Vj(centres)).argmin(dim=1)[:, 0]
            moved = centres
            centres = means(pixels, label, centres)
            shift = float(np.abs(centres - moved).max())
            done += 1
            bar.set_postfix_str(f"largest move {255 * shift:.2f} of 255", refresh=False)
            bar.update()
    took = time.perf_counter() - begun

    after = (255 * centres[label] + 0.5).astype(np.uint8).reshape(before.shape)
    error = float(np.sqrt(np.mean((after.astype(np.float64) - before) ** 2)))
    Image.fromarray(before).save(folder / "china-before.png")
    Image.fromarray(after).save(folder / "china-after.png")
    found = len(np.unique(before.reshape(-1, 3), axis=0))
    say("palette", f"{done} steps in {took:.1f} s; {found:,} colours became {len(np.unique(label))}")
    say("palette", f"root mean square error {error:.1f} of 255")
    say("palette", f"wrote {folder / 'china-before.png'} and {folder / 'china-after.png'}")


def means(pixels: np.ndarray[Any, Any], label: np.ndarray[Any, Any], old: np.ndarray[Any, Any]) -> Any:
    """The mean of each cluster; an empty one stays where it was."""
    size = np.bincount(label, minlength=len(old))
    total = np.stack([np.bincount(label, pixels[:, d], minlength=len(old)) for d in range(3)], axis=1)
    return np.where(size[:, None] > 0, total / np.maximum(size, 1)[:, None], old).astype(np.float32)


def gaussian(n: int) -> None:
    """sum_j exp(-|x_i - y_j|^2 / 2 s^2) b_j for all i."""
    rng = np.random.default_rng(0)
    x, y = rng.random((n, 3), dtype=np.float32), rng.random((n, 3), dtype=np.float32)
    b = rng.random((n, 1), dtype=np.float32)
    s = 0.2
    say(
        "gaussian",
        f"a kernel sum over {n:,} x {n:,} pairs, float32; its matrix would take {4e-9 * n * n:.2g} GB",
    )

    def near() -> Any:
        return (-Vi(x).sqdist(Vj(y)) / (2 * s**2)).exp() @ b

    first, _ = timed(near)
    second, a = timed(near)
    say("gaussian", f"farsum: {first:.2f} s the first time, {second:.2f} s again: the server has the arrays")
    begun = time.perf_counter()
    truth = dense(x, y, b, s)
    took = time.perf_counter() - begun
    error = float(np.max(np.abs(a - truth) / truth))
    say(
        "gaussian",
        f"NumPy:  {took:.2f} s, dense, float64, by blocks of rows: {took / second:.0f} times as long",
    )
    say("gaussian", f"largest relative error of farsum: {error:.1e}")
    if error > 1e-5:
        sys.exit("the kernel sum is wrong: this should be below 1e-5")


def timed(call: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def dense(x: Any, y: Any, b: Any, s: float, rows: int = 250) -> Any:
    x, y, b = (v.astype(np.float64) for v in (x, y, b))
    parts = []
    blocks = range(0, len(x), rows)
    for start in tqdm(blocks, desc="  gaussian dense NumPy", unit="block", file=sys.stdout, leave=False):
        part = x[start : start + rows]
        d = (part**2).sum(1)[:, None] + (y**2).sum(1) - 2 * part @ y.T
        d *= -1 / (2 * s**2)
        parts.append(np.exp(d, out=d) @ b)
    return np.concatenate(parts)


# ── words ───────────────────────────────────────────────────────────────────────────────────────


def say(part: str, text: str) -> None:
    print(f"  {part:<9}{text}", flush=True)


def what_next(folder: Path) -> None:
    venv = os.path.relpath(sys.prefix)
    here = "" if venv.startswith("..") else f"{venv}/bin/"
    farsum_command, python_command = f"{here}farsum", f"{here}python"
    print(
        f"""
What to try next
  look at {folder}/china-after.png
  {farsum_command} serve
      a server of your own on localhost:50051, until Ctrl-C
  FARSUM_TARGET=grpc://localhost:50051 {python_command} your_script.py
      any script that uses farsum.numpy then runs on it
  README.md, "Ten lines" and "From a laptop to the big machine"
      your own formula, and the same on another machine through SSH
  make test, make bench
      the tests; the speed of this machine next to pykeops"""
    )


if __name__ == "__main__":
    main()
