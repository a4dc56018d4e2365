"""A report for machines and job pages: JUnit XML and Markdown."""

import re
from typing import Final
from xml.etree import ElementTree

from postproc_export.parity.reports.report import Check, ParityReport
from postproc_export.parity.reports.stage_table import markdown_rows

_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
_SIGNS: Final = {"passed": "✅", "MISSED": "❌", "shown": "👁"}


def junit(report: ParityReport) -> str:
    """Return the report as JUnit XML: a test case per check; what decides nothing, or was not checked, is skipped."""
    skipped = sum(not check.judged for check in report.checks) + len(report.not_checked)
    suite = ElementTree.Element(
        "testsuite",
        name=f"parity of {report.subject}",
        tests=str(len(report.checks) + len(report.not_checked)),
        failures=str(len(report.missed)),
        errors="0",
        skipped=str(skipped),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in report.environment.items():
        ElementTree.SubElement(properties, "property", name=name, value=_text(str(value)))
    for check in report.checks:
        _add_case(suite, check)
    for sentence in report.not_checked:
        case = ElementTree.SubElement(suite, "testcase", classname="not checked", name=_text(sentence))
        ElementTree.SubElement(case, "skipped", message="not checked")
    if report.whole:
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(report.verdicts()))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: ParityReport) -> str:
    """Return the report as Markdown: the verdict, a table as on the terminal, misses in full, what was not checked."""
    ways = report.ways
    lines = [f"### {_SIGNS['passed' if report else 'MISSED']} {_cell(report.verdict())}", ""]
    lines += [f"| check | {' | '.join(ways)} |", f"| --- |{' --- |' * len(ways)}"]
    for subject, found in report.rows().items():
        cells = [f"{_SIGNS[found[way].verdict]} {_cell(found[way].brief)}" if way in found else "" for way in ways]
        lines.append(f"| {_cell(subject)} | {' | '.join(cells)} |")
    if report.whole:
        lines += ["", *(_bullet(line) for line in report.verdicts()), "", *markdown_rows(report.whole)]
    lines += ["", *(f"- **missed** `{check.name}`: {_cell(check.message)}" for check in report.missed)]
    lines += [f"- not checked: {_cell(sentence)}" for sentence in report.not_checked]
    lines += [f"- {key}: {_cell(str(value))}" for key, value in report.environment.items()]
    return "\n".join(lines) + "\n"


def _bullet(line: str) -> str:
    """Return a list entry; what is indented belongs to the entry before it."""
    return f"{'  ' if line.startswith(' ') else ''}- {_cell(line)}"


def _add_case(suite: ElementTree.Element, check: Check) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_text(check.subject), name=_text(check.name))
    if not check.judged:
        ElementTree.SubElement(case, "skipped", message=_text(f"shown, decides nothing: {check.message}"))
    elif not check.passed:
        ElementTree.SubElement(case, "failure", message=_text(check.message)).text = _text(str(check.to_json()))
    else:
        ElementTree.SubElement(case, "system-out").text = _text(check.message)


def _text(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
