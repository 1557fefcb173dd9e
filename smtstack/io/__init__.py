"""Raw sockets, neighbours, polling: the only place that touches the operating system."""
