"""Messages of published sizes, all hosts to all, at a load."""
