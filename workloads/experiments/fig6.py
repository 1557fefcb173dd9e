"""``smtnet reproduce fig6``: a figure of echo, as its record says."""

from __future__ import annotations

from workloads.experiments.paper_echo.figure import experiment
from workloads.experiments.paper_echo.figures import FIG6

EXPERIMENT = experiment(FIG6)
