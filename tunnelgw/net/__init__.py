"""asyncio shells without policy: loop, tasks, timers, flow control, splices, links, TLS, accepting."""
