"""What all processes with a NIC on one interface share: its settings, its counters, its tap."""
