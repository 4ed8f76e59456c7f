"""A verdict as JUnit XML, which CI systems show beside their tests: one test case per rule."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from tunesmith.artifacts import Verdict

# What XML 1.0 cannot hold (section 2.2), however it is escaped.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(verdict: Verdict, run_name: str) -> str:
    """Return the document: a failed rule is a failure whose message is its evidence."""
    failed = sum(not rule["passed"] for rule in verdict.rules)
    counts = {"tests": str(len(verdict.rules)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", counts | {"name": "tunesmith"})
    suite = ET.SubElement(root, "testsuite", counts | {"name": _clean(f"tunesmith gate {run_name}"), "time": "0"})
    for rule in verdict.rules:
        _case(suite, rule)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ET.Element, rule: dict[str, Any]) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": "gate", "name": _clean(rule["rule"]), "time": "0"})
    evidence = _clean(rule["evidence"])
    if rule["passed"]:
        ET.SubElement(case, "system-out").text = evidence
    else:
        ET.SubElement(case, "failure", {"message": evidence, "type": "rule"}).text = evidence


def _clean(text: Any) -> str:
    return _UNWRITABLE.sub("\ufffd", str(text))
