"""Which tests are long: those of whole commands, runs and services, by the seconds that they took.

    python -m tests.long junit.xml left.xml

writes `long_tests.txt` anew, by files of results that ``pytest --junitxml`` has written: first of
all tests, then of those that were left, to which the time of shared fixtures has moved.
"""

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

SECONDS = 1.0
"""What a test takes at least to be long: with its fixtures, and the mean over its cases."""
LIST = Path(__file__).with_name("long_tests.txt")


def listed() -> set[str]:
    """Names of the long tests, such as ``tests/test_cli.py::test_mistakes``, without cases."""
    return set(LIST.read_text().split())


def found(results: Path) -> list[str]:
    """The tests of a file of results that are long."""
    seconds = defaultdict[str, list[float]](list)
    for case in ET.parse(results).iter("testcase"):
        folder, module, *classes = case.attrib["classname"].split(".")
        name = "::".join([f"{folder}/{module}.py", *classes, case.attrib["name"]])
        seconds[name.partition("[")[0]].append(float(case.attrib["time"]))
    return sorted(name for name, took in seconds.items() if sum(took) / len(took) >= SECONDS)


if __name__ == "__main__":
    names = {name for results in sys.argv[1:] for name in found(Path(results))}
    LIST.write_text("\n".join(sorted(names)) + "\n")
