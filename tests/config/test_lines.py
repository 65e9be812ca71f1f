"""Lines of keys in TOML text."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.config.lines import line_of, locate

TEXT = '''# comment with [a] = 1
edge = "a#b" # 2
"quoted key".'x y' = 1 # 3
nested = { one = 1, two.three = "}" } # 4
list = [ # 5
  "a", # 6
  """b
  ] [x] k = 1
  """, # 7-9
  { in = [1, 2] }, # 10
]
[services.wiki] # 12
target = """
[nope]
x = 1"""
host = ['a', "b\\"]"] # 16
[[many]] # 17
a = 1
[many.inner]
b = 2 # 20
[[many]]
a = 3 # 22
[ dotted . "k.e.y" ] # 23
"\\u0061b" = 1 # 24
'''


def test_every_form_of_key() -> None:
    tomllib.loads(TEXT)
    lines = locate(TEXT)
    expected = {
        ("edge",): 2,
        ("quoted key", "x y"): 3,
        ("nested",): 4,
        ("nested", "two", "three"): 4,
        ("list",): 5,
        ("list", 0): 6,
        ("list", 1): 7,
        ("list", 2): 10,
        ("list", 2, "in", 1): 10,
        ("services",): 12,
        ("services", "wiki"): 12,
        ("services", "wiki", "target"): 13,
        ("services", "wiki", "host", 1): 16,
        ("many", 0): 17,
        ("many", 0, "a"): 18,
        ("many", 0, "inner", "b"): 20,
        ("many", 1, "a"): 22,
        ("dotted", "k.e.y"): 23,
        ("dotted", "k.e.y", "ab"): 24,
    }
    assert {key: lines.get(key) for key in expected} == expected
    assert line_of(lines, ("services", "wiki", "missing")) == 12
    assert line_of(lines, ("missing",)) == 1


def test_line_ends_of_windows() -> None:
    assert locate(TEXT.replace("\n", "\r\n")) == locate(TEXT)


def test_every_key_of_a_document_is_found() -> None:
    lines = locate(TEXT)

    def walk(value: Any, key: tuple[str | int, ...]) -> None:
        if key:
            assert key in lines
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in items:
            walk(item, (*key, name))

    walk(tomllib.loads(TEXT), ())


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab.=[]{}\"'#\\\n, u1", max_size=60))
def test_any_text_ends(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in locate(text).values())
