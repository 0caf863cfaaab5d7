"""Libraries that are imported once something in them is asked for."""

import sys

import pytest

from rig.display.at_first_use import at_first_use


def test_a_module_is_imported_once_it_is_asked_and_outside_the_body_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with at_first_use("colorsys"):
        import colorsys as put_off

        assert "ONE_THIRD" not in vars(put_off)
    assert "colorsys" not in sys.modules
    import colorsys

    assert colorsys is not put_off
    assert put_off.rgb_to_hsv is colorsys.rgb_to_hsv
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = put_off.no_such_thing


def test_one_that_is_used_in_the_body_is_there_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.delitem(sys.modules, "xml.dom.minidom", raising=False)
    with at_first_use("colorsys", "xml.dom.minidom"):
        from colorsys import rgb_to_hsv
        from xml.dom import minidom

        assert rgb_to_hsv(0.0, 0.0, 1.0)[2] == 1.0
        assert minidom.Document().toxml().startswith("<?xml")
    assert {"colorsys", "xml.dom.minidom"} <= set(sys.modules)
    assert sys.modules["colorsys"].rgb_to_hsv is rgb_to_hsv


def test_one_that_is_there_already_is_left_alone() -> None:
    with at_first_use("sys", "json"):
        import json

        assert "loads" in vars(json)
    assert sys.modules["json"] is json


def test_a_missing_one_is_an_import_error_at_its_use() -> None:
    with at_first_use("stimloop_no_such_library"):
        import stimloop_no_such_library  # type: ignore[import-not-found]
    with pytest.raises(ImportError, match="stimloop_no_such_library"):
        _ = stimloop_no_such_library.anything
