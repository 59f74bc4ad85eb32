"""The table of the chart's values is the one that values.yaml makes."""

import yaml

from deploy import values


def test_the_page_is_made_of_the_file() -> None:
    assert values.PAGE.read_text() == values.page(values.VALUES.read_text()), (
        "run python -m deploy.values"
    )


def test_every_value_is_in_the_table() -> None:
    told = {path for path, _, _ in values.rows(values.VALUES.read_text())}
    for section, content in yaml.safe_load(values.VALUES.read_text()).items():
        paths = [f"{section}.{key}" for key in content] if isinstance(content, dict) else []
        assert section in told or set(paths) <= told, section
    for key in yaml.safe_load(values.VALUES.read_text())["pods"]["all"]:
        assert f"pods.all.{key}" in told


def test_defaults_and_comments_are_told() -> None:
    content = (
        "# ---- a part ----\n# Of a.\na:\n  # Of b,\n  # more.\n  b: {c: 1}\n  # Of d.\n  d: ''\n"
    )
    assert values.rows(content) == [
        ("a", "", "Of a."),
        ("a.b", "{c: 1}", "Of b, more."),
        ("a.d", '""', "Of d."),
    ]
