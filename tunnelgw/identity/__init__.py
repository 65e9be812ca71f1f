"""The private CA, invitations and certificates (the only importer of cryptography)."""
