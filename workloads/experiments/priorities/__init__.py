"""Eight traffic classes at one port of a switch."""
