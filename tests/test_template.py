"""--format: what a template makes of an answer."""

import click
import pytest

from registry_cache.cli.template import line_maker

FIELDS = {"repository": "nginx", "tag": "1", "size_bytes": 5, "pinned": True, "store": {"blobs": 3}}


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{repository}}:{{ tag }}", "nginx:1"),
        ("{{.Repository}}:{{ .Tag }}", "nginx:1"),
        ("{{.SizeBytes}}\\t{{size_bytes * 2}}", "5\t10"),
        ("{{store.blobs}} {{Store.blobs}}", "3 3"),
        ("{% if pinned %}yes{% endif %}", "yes"),
        ("v{{.Repository|upper}}.", "vNGINX."),
    ],
)
def test_a_template_makes_a_line(template, line):
    assert line_maker(template)(FIELDS) == line


def test_json_is_one_line_of_all_fields():
    assert line_maker("json")({"a": "ü\n"}) == '{"a": "\\u00fc\\n"}'


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{.Nam}}", "'Nam' is undefined: there are repository, tag, size_bytes, pinned, store"),
        ("{{store.nothing}}", "has no attribute 'nothing'"),
        ("{{", "--format: unexpected"),
        ("{{ size_bytes / 0 }}", "division by zero"),
        ("{{ repository.__class__.__mro__ }}", "--format: "),
        ("{{ tag + 1 }}", "--format: "),
    ],
)
def test_what_is_wrong_with_a_template_is_said(template, said):
    with pytest.raises(click.UsageError) as told:
        line_maker(template)(FIELDS)
    assert said in told.value.message


def test_nothing_in_a_value_steers_a_terminal_whatever_is_made_of_it():
    line = line_maker("{{a}} {{b.c}} {{d[0]}}")({"a": "\x1b[2J", "b": {"c": "x\ny"}, "d": ["\x07"]})
    assert line == r"\x1b[2J x\ny \x07"
