"""What an operator asks a running process: control socket, metrics, health."""
