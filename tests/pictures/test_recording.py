"""The recording, without a daemon: it says what was said, when it was said, and nothing but words."""

import re
from xml.etree import ElementTree as ET

from tests.pictures.recording import ROWS, Line, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_each_line_appears_when_it_was_printed():
    root = ET.fromstring(svg([Line(0, "$ docker pull x", "typed"), Line(2, "<done> & gone")], "A pull"))
    shown = root.findall(f".//{SVG}g/{SVG}text")
    assert [text.text for text in shown] == ["$ docker pull x", "<done> & gone"]
    # The session is 2 s, and its end stays for 6.
    assert "l1 { 0% { opacity: 0 } 25.000% { opacity: 1 } }" in root.find(f"{SVG}style").text
    assert "@keyframes l0" not in root.find(f"{SVG}style").text, "it is there from the beginning"


def test_it_scrolls_only_when_the_screen_is_full():
    def rolls(number):
        return re.search(r"@keyframes roll {(.*)}", svg([Line(at, "x") for at in range(number)], ""))[1].count("%")

    assert [rolls(ROWS), rolls(ROWS + 1), rolls(ROWS + 5)] == [0, 1, 5]


def test_who_wants_no_motion_sees_the_end():
    picture = svg([Line(at, "x") for at in range(ROWS + 2)], "")
    still = picture.partition("prefers-reduced-motion")[2].partition("@keyframes")[0]
    assert "animation: none" in still
    assert "translateY(-36px)" in still


def test_a_screen_reader_hears_what_was_done():
    root = ET.fromstring(
        svg([Line(0, "$ docker pull x", "typed"), Line(1, "layers"), Line(2, "# 1 pull", "said")], "T")
    )
    assert root.find(f"{SVG}title").text == "T"
    assert root.find(f"{SVG}desc").text == "$ docker pull x; 1 pull"
