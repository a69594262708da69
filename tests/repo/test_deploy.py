"""The container and the compose file: what a person who runs them relies on."""

from __future__ import annotations

import re
from pathlib import Path


def test_dockerfile_has_both_targets_and_no_root(root: Path) -> None:
    text = (root / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert {"cpu", "cuda"} <= {name for _, name in stages}
    assert stages[-1][1] == "cpu", "a build without a target gives the one that works"
    assert re.search(r"^USER farsum$", text, re.MULTILINE)
    assert "EXPOSE" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    for image, _ in stages:
        assert image in {name for _, name in stages} or re.fullmatch(r"python:3\.1[123]-slim", image)


def test_dockerfile_copies_what_the_ignore_file_lets_through(root: Path) -> None:
    passed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (root / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == passed


def test_compose_stays_on_the_loopback(root: Path) -> None:
    text = (root / "deploy" / "compose.yaml").read_text()
    assert re.search(r"network_mode: host$", text, re.MULTILINE)
    assert '"--host", "127.0.0.1"' in text
    assert "read_only: true" in text and "healthcheck:" in text
    assert "ports:" not in text and "0.0.0.0" not in text
