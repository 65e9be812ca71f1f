"""The process on the VPS: front door, tunnels, routes, ports."""
