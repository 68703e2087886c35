"""The electricity of a training, measured by codecarbon where somebody says in which country the machine stands.

Who wants it installs the extra `energy` and sets `CODECARBON_COUNTRY_ISO_CODE` (three letters, such as `DEU`), which is
codecarbon's own name for it: where a machine stands is no matter of a recipe. Nothing is asked of any network.
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
        self._before = EnergyFacts(0.0, 0.0, country)
        self._tracker: Any = None
        self._total: Any = None

    def start(self, before: EnergyFacts | None) -> None:
        """Begin to measure; `before` is what earlier sessions of the training used."""
        from codecarbon import OfflineEmissionsTracker

        self._before = before or self._before
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=self.country,
            # Whatever else a codecarbon configuration says: no file, no server, no lock on the machine.
            output_methods=[],
            output_handlers=[self],
            allow_multiple_runs=True,
            log_level="error",
        )
        self._tracker.start()

    def out(self, total: Any, delta: Any) -> None:
        """Take what codecarbon has measured since the start; called by its tracker."""
        self._total = total

    def read(self) -> EnergyFacts | None:
        """What all sessions used so far; None where this one was not measured."""
        if self._tracker is None:
            return None
        self._tracker.flush()
        before, now = self._before, self._total
        return EnergyFacts(before.kwh + now.energy_consumed, before.co2_kg + now.emissions, self.country)


def energy_meter() -> EnergyMeter | None:
    """The meter, if the environment asks for one."""
    country = os.environ.get(COUNTRY)
    return EnergyMeter(country.upper()) if country else None
