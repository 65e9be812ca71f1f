"""Hostile visitors and hostile services against a real edge and connector, case by case, over raw sockets."""
