"""Measure the electricity of a training with codecarbon, if the environment names the country of the machine.

Install the extra `energy` and set `CODECARBON_COUNTRY_ISO_CODE` (three letters, such as `DEU`), codecarbon's own
variable: the place of a machine is not part of a recipe. Nothing is asked of any network. Transformers' own
`CodeCarbonCallback` looks the place up online, leaves `emissions.csv` behind, and counts one session only.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from blip_recipe.card.facts import EnergyFacts
from blip_recipe.errors import RecipeError

COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"


class EnergyMeter:
    """Measures the whole machine from `start` on.

    Args:
        country: Its three-letter code, which tells how much CO2 a kWh stands for.

    Raises:
        RecipeError: codecarbon is not installed, or knows no such country.
    """

    def __init__(self, country: str) -> None:
        if find_spec("codecarbon") is None:
            raise RecipeError(
                f"{COUNTRY} asks for the energy to be measured, but codecarbon is not installed: run "
                "`pip install codecarbon`, or unset it."
            )
        from codecarbon.input import DataSource

        if country not in DataSource().get_global_energy_mix_data():
            raise RecipeError(f"{COUNTRY} is {country!r}: expected a country's three-letter code, such as 'DEU'.")
        self.country = country
        self._tracker: Any = None
        self._total: Any = None

    def start(self, before: EnergyFacts | None) -> None:
        """Begin to measure; `before` is what earlier sessions of the training used."""
        from codecarbon import OfflineEmissionsTracker

        self._before = before or EnergyFacts(0.0, 0.0, self.country)
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=self.country,
            # Over codecarbon's own configuration: no file, no server, no lock on the machine.
            output_methods=[],
            emissions_endpoint=None,
            electricitymaps_api_token="",
            output_handlers=[self],
            allow_multiple_runs=True,
            log_level="error",
        )
        self._tracker.start()

    def out(self, total: Any, delta: Any) -> None:
        """Take what codecarbon has measured since the start; called by its tracker."""
        self._total = total

    def read(self) -> EnergyFacts | None:
        """What all sessions used so far; None where this one was not measured, or codecarbon failed."""
        if self._tracker:
            self._tracker.flush()
        if self._total is None:
            return None
        before, now = self._before, self._total
        return EnergyFacts(before.kwh + now.energy_consumed, before.co2_kg + now.emissions, self.country)


def energy_meter() -> EnergyMeter | None:
    """The meter, if the environment asks for one."""
    country = os.environ.get(COUNTRY)
    return EnergyMeter(country.upper()) if country else None
