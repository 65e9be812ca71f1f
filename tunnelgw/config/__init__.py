"""edge.toml and connector.toml: frozen, documented, validated models."""
