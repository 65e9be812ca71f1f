"""No secret leaves: not in logs, arguments, environments, metrics, status or answers, and not on any way that fails."""

from __future__ import annotations

from tests.system import planted
