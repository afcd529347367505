"""docs/settings.md tells of the settings that there are."""

from pathlib import Path

import pytest

from backend.settings import Settings
from tools import settings_table


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_table.main(["--check"]) == 0, capsys.readouterr().err


def test_every_setting_has_a_row() -> None:
    table = settings_table.table()
    assert table.count("\n") == len(Settings.model_fields) + 2
    assert "| `PORT` | `--port` | 9090 | " in table


def test_an_old_table_is_found_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "settings.md"
    page.write_text(f"before\n{settings_table.BEGIN}| old |\n{settings_table.END}after\n", encoding="utf-8")
    monkeypatch.setattr(settings_table, "PAGE", page)
    assert settings_table.main(["--check"]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert settings_table.main([]) == 0
    assert settings_table.main(["--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| old |" not in text


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected the lines"):
        settings_table.with_table("no markers\n", "| a |\n")
