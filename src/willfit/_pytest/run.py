"""What a run of pytest gathers: results, baselines, and what to say at the end."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest

from willfit._pytest.baseline import baseline_path
from willfit._pytest.ledger import Ledger
from willfit._pytest.outcome import Result
from willfit._pytest.settings import RunSettings

SCHEMA: Final = 1
"""Version of the file of --willfit-json; grows when a key changes its meaning or goes away."""

CACHE: Final = "willfit/required"
"""Where pytest's cache has what each test needed the last time, in bytes."""


class Run:
    """The results of a run; under xdist, those of one worker, or all of them on the controller."""

    def __init__(self, config: pytest.Config, settings: RunSettings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings, config.rootpath)
        self.done: list[str] = []
        """What became of baselines and files, in sentences."""
        self.wrong: list[str] = []
        """What went wrong with them."""
        self._config = config
        self._results: dict[tuple[str, str], dict[str, Any]] = {}
        self._tests: defaultdict[Path, set[str]] = defaultdict(set)
        self._passed: dict[str, bool] = {}

    def collected(self, items: list[pytest.Item]) -> None:
        """All tests of files that were collected as a whole, where there are baselines beside them."""
        config = self._config
        if any("::" in argument for argument in config.args) or config.getoption("lf", False):
            return  # tests that are not here may be there all the same
        files = {file for file in {item.path for item in items} if baseline_path(file).exists()}
        for item in items:
            if item.path in files:
                self._tests[item.path].add(id_within_file(item))

    def reported(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """A test, or a part of one, passed or failed; what comes last is the test itself."""
        if report.when == "call":
            self._passed[f"{item.path}::{id_within_file(item)}"] = report.passed

    def add(self, result: Result) -> None:
        """A check was made; one made again, as by a plugin that reruns tests, replaces the first."""
        plain = result.to_dict(with_footprint=self.settings.json is not None)
        self._results[result.test, result.name] = plain

    def results(self) -> list[dict[str, Any]]:
        """All results so far, by test."""
        return [self._results[key] for key in sorted(self._results)]

    # -- from a worker to the controller --------------------------------------------------------------------------

    def to_text(self) -> str:
        """What a worker gathered."""
        return json.dumps(
            {
                "results": self.results(),
                "ledger": self.ledger.to_dict(),
                "passed": self._passed,
                "tests": {str(file): sorted(tests) for file, tests in self._tests.items()},
            }
        )

    def merge(self, text: str) -> None:
        """Take over what a worker gathered."""
        gathered = json.loads(text)
        self._results.update({(result["test"], result["name"]): result for result in gathered["results"]})
        self.ledger.merge(gathered["ledger"])
        self._passed.update(gathered["passed"])
        for file, tests in gathered["tests"].items():
            self._tests[Path(file)].update(tests)

    # -- at the end --------------------------------------------------------------------------------------------

    def finish(self, *, complete: bool) -> None:
        """Write baselines and results. A run that was interrupted leaves the baselines as they are."""
        if complete:
            tests = {
                file: {test: self._passed.get(f"{file}::{test}", False) for test in known}
                for file, known in self._tests.items()
            }
            self.done, self.wrong = self.ledger.finish(tests)
        if self.settings.json is not None:
            self._write_json(self._config.invocation_params.dir / self.settings.json)
        self._remember()

    def _write_json(self, path: Path) -> None:
        from willfit import __version__

        content = {"schema": SCHEMA, "willfit": __version__, "checks": self.results()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            self.wrong.append(f"--willfit-json was not written: {error}")
        else:
            self.done.append(f"results written to {self.settings.json}")

    def _remember(self) -> None:
        """For `willfit._pytest.workers`: what each test needs."""
        cache = getattr(self._config, "cache", None)
        if cache is None or not self._results:
            return
        needs = {test: size for test, size in (cache.get(CACHE, None) or {}).items() if self._is_there(test)}
        for test in {test for test, _ in self._results}:
            needs[test] = max(result["required"] for result in self._results.values() if result["test"] == test)
        cache.set(CACHE, needs)

    def _is_there(self, nodeid: str) -> bool:
        return (self._config.rootpath / nodeid.partition("::")[0]).exists()


def id_within_file(item: pytest.Item) -> str:
    """The test's id within its file: "TestFit::test_llama[T4]", without what pytest-xdist adds for its groups."""
    names: list[str] = []
    node: Any = item
    while node is not None and not isinstance(node, pytest.File):
        names.insert(0, node.name)
        node = node.parent
    return "::".join(names)


def id_of(item: pytest.Item) -> str:
    """The test's id, as `id_within_file`."""
    return f"{item.nodeid.partition('::')[0]}::{id_within_file(item)}"
