"""Measure the energy of a training with codecarbon, if the environment variable of the country is set.

Install the extra `energy` and set codecarbon's variable `CODECARBON_COUNTRY_ISO_CODE` to three letters, such as `DEU`.
It is not a recipe key, because it depends on the machine. Nothing is looked up online. The `CodeCarbonCallback` of
transformers looks up the country online, writes `emissions.csv`, and counts only one session.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from blip_recipe.card.facts import EnergyFacts
from blip_recipe.errors import RecipeError

COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"


class EnergyMeter:
    """Measure the energy of the whole machine from `start` on.

    Args:
        country: Three-letter code of the country, for the CO2 per kWh.

    Raises:
        RecipeError: codecarbon is not installed, or does not know the country.
    """

    def __init__(self, country: str) -> None:
        if find_spec("codecarbon") is None:
            raise RecipeError(
                f"{COUNTRY} turns on the measurement of energy, but codecarbon is not installed: run "
                "`pip install codecarbon`, or unset the variable."
            )
        from codecarbon.input import DataSource

        if country not in DataSource().get_global_energy_mix_data():
            raise RecipeError(f"{COUNTRY} is {country!r}: expected a country's three-letter code, such as 'DEU'.")
        self.country = country
        self._tracker: Any = None
        self._total: Any = None

    def start(self, before: EnergyFacts | None) -> None:
        """Start measuring. `before` is the energy of earlier sessions of the training."""
        from codecarbon import OfflineEmissionsTracker

        self._before = before or EnergyFacts(0.0, 0.0, self.country)
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=self.country,
            # Override codecarbon's configuration: no file, no server, no lock.
            output_methods=[],
            emissions_endpoint=None,
            electricitymaps_api_token="",
            output_handlers=[self],
            allow_multiple_runs=True,
            log_level="error",
        )
        self._tracker.start()

    def out(self, total: Any, delta: Any) -> None:
        """Receive the total since the start. codecarbon's tracker calls this."""
        self._total = total

    def read(self) -> EnergyFacts | None:
        """The energy of all sessions so far, or None if this session was not measured or codecarbon failed."""
        if self._tracker:
            self._tracker.flush()
        if self._total is None:
            return None
        before, now = self._before, self._total
        return EnergyFacts(before.kwh + now.energy_consumed, before.co2_kg + now.emissions, self.country)


def energy_meter() -> EnergyMeter | None:
    """Create the meter, if the environment variable is set."""
    country = os.environ.get(COUNTRY)
    return EnergyMeter(country.upper()) if country else None
