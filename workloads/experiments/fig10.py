"""``smtnet reproduce fig10``: a figure of echo, as its record says."""

from __future__ import annotations

from workloads.experiments.paper_echo.figure import experiment
from workloads.experiments.paper_echo.figures import FIG10

EXPERIMENT = experiment(FIG10)
