"""Nothing is green by skipping: under CI, a skip or an expected failure must be on the list."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("allowed_skips.toml")


@dataclass(frozen=True)
class Allowed:
    """One row of the list: which tests, the words that the skip must give, and why we accept it."""

    tests: str
    says: str
    because: str

    def covers(self, test: str, reason: str) -> bool:
        return fnmatchcase(test, self.tests) and self.says in reason


def read_allowed(path: Path = LIST) -> list[Allowed]:
    return [Allowed(**row) for row in tomllib.loads(path.read_text()).get("allowed", [])]


class SkipGuard:
    """A pytest plugin that notes every skip and xfail and, when strict, fails the run for the unlisted."""

    def __init__(self, allowed: list[Allowed], *, strict: bool) -> None:
        self._allowed = allowed
        self._strict = strict
        self._unlisted: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            reason = getattr(report, "wasxfail", None)
            self._note(report.nodeid, f"xfail: {reason}" if reason is not None else _reason(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.nodeid, _reason(report))

    def _note(self, test: str, reason: str) -> None:
        if not any(row.covers(test, reason) for row in self._allowed):
            self._unlisted[test] = reason

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._strict and self._unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._strict and self._unlisted:
            terminalreporter.section("skips that tests/allowed_skips.toml does not list", red=True)
            for test, reason in self._unlisted.items():
                terminalreporter.line(f"{test}: {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    return str(where[2]) if isinstance(where, tuple) else str(where)
