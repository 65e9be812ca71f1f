"""Who may come in: grants, address rules and limits as pure decisions."""
