"""What both ends of a private stream share: end-to-end TLS, what is said inside it, keys that are remembered."""
