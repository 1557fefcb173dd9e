"""smtnet's workloads, experiments and the ``smtnet`` command."""
