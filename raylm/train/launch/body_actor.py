"""A body behind a Ray actor: its process is told to live, and does not come back."""

from __future__ import annotations

from typing import Any

from raylm.coordination.messages import Birth


class BodyActor:
    """The process of one body. It is light until it lives: what training needs is imported then."""

    def __init__(self, birth: Birth, hub: Any) -> None:
        self._birth, self._hub = birth, hub

    def placed(self) -> None:
        """The process is there."""

    def live(self) -> None:
        """Train until the hub lets the body go."""
        import ray

        from raylm.coordination.contract import actor_client
        from raylm.train.body import Body

        node = ray.get_runtime_context().get_node_id()
        Body(self._birth, node, ray.util.get_node_ip_address(), actor_client(self._hub)).live()
