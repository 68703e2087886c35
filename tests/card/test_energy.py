"""Energy on cards: measured where a country is named, by the real codecarbon, and nothing said without."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
from cards import train

from blip_recipe.card.energy import COUNTRY, EnergyMeter, energy_meter
from blip_recipe.card.facts import EnergyFacts
from blip_recipe.errors import RecipeError

with_codecarbon = pytest.mark.skipif(find_spec("codecarbon") is None, reason="needs the extra `energy`")


def test_nothing_is_measured_unless_a_country_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COUNTRY, raising=False)
    assert energy_meter() is None


@pytest.mark.skipif(find_spec("codecarbon") is not None, reason="codecarbon is installed")
def test_a_country_without_codecarbon_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COUNTRY, "DEU")
    with pytest.raises(RecipeError, match="pip install codecarbon"):
        energy_meter()


@with_codecarbon
def test_an_unknown_country_is_an_error() -> None:
    with pytest.raises(RecipeError, match="three-letter"):
        EnergyMeter("Germany")


@with_codecarbon
def test_energy_goes_on_from_what_earlier_sessions_used() -> None:
    meter = EnergyMeter("DEU")
    assert meter.read() is None
    meter.start(EnergyFacts(kwh=1.0, co2_kg=0.5, country="DEU"))
    first, second = meter.read(), meter.read()
    assert first
    assert second
    assert 1.0 < first.kwh <= second.kwh < 1.01
    assert 0.5 < first.co2_kg <= second.co2_kg < 0.51


@with_codecarbon
def test_nothing_is_asked_of_any_network_whatever_codecarbon_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def note(*arguments: object, **_: object) -> list[object]:
        asked.append(arguments)
        return []

    monkeypatch.setattr(socket.socket, "connect", note)
    monkeypatch.setattr(socket, "getaddrinfo", note)
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://127.0.0.1:9/emissions")
    monkeypatch.setenv("CODECARBON_CO2_SIGNAL_API_TOKEN", "token")
    monkeypatch.chdir(tmp_path)
    meter = EnergyMeter("DEU")
    meter.start(None)
    assert meter.read()
    assert asked == []
    assert list(tmp_path.iterdir()) == []


@with_codecarbon
def test_a_failure_of_codecarbon_leaves_the_energy_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from codecarbon import OfflineEmissionsTracker

    def fail(self: OfflineEmissionsTracker) -> None:
        raise OSError("no such sensor")

    monkeypatch.setattr(OfflineEmissionsTracker, "_prepare_emissions_data", fail)
    meter = EnergyMeter("DEU")
    meter.start(None)
    assert meter.read() is None


@with_codecarbon
def test_a_resumed_training_counts_the_energy_of_all_its_sessions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(COUNTRY, "DEU")
    first, second = train(tmp_path, 2), train(tmp_path, 4)
    assert first.energy
    assert second.energy
    assert 0 < first.energy.kwh < second.energy.kwh
    monkeypatch.delenv(COUNTRY)
    # Measured in part, it would tell a part.
    assert train(tmp_path, 6).energy is None
