"""A visiting machine: reaches private services, and what connectors let it reach, through the edge."""
