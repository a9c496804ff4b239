from __future__ import annotations

from process.conftest import kept_servers, one_thread, quick_collection, runner, servers

__all__ = ["kept_servers", "one_thread", "quick_collection", "runner", "servers"]
