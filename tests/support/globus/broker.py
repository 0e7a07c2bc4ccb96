"""Queues and exchanges, as the Globus Compute service lays them out in its broker."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

import pika

RESULTS, HEARTBEATS = "results", "heartbeats"
GROUP_PREFIX = "group."
"""The queue of a task group's results is this and the group's id."""

_EXCHANGE = "from-endpoints"


class Broker:
    """The service's side of the broker: a connection for each thing it does.

    Args:
        url: of the broker.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._publisher: Any = None

    def open(self) -> None:
        """Declare what endpoints send to."""
        channel = self._connect()
        channel.exchange_declare(_EXCHANGE, "topic", durable=True)
        for queue in (RESULTS, HEARTBEATS):
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, _EXCHANGE, f"*.{queue}")
        self._publisher = channel

    def close(self) -> None:
        """Close its connection."""
        with self._lock:
            self._publisher.connection.close()

    def _connect(self) -> Any:
        return pika.BlockingConnection(pika.URLParameters(self.url)).channel()

    def declare(self, queue: str) -> None:
        """Make a queue, unless there is one."""
        self._do(lambda channel: channel.queue_declare(queue, durable=True))

    def publish(self, queue: str, body: bytes, **properties: Any) -> None:
        """Put a message into a queue."""
        options = pika.BasicProperties(delivery_mode=2, **properties)
        self._do(lambda channel: channel.basic_publish("", queue, body, options))

    def _do(self, work: Callable[[Any], object]) -> None:
        with self._lock:
            try:
                work(self._publisher)
            except pika.exceptions.AMQPError:  # It had nothing to do for too long.
                self._publisher = self._connect()
                work(self._publisher)

    def consume(
        self, stop: threading.Event, consumers: dict[str, Callable[[bytes], None]]
    ) -> None:
        """Give what comes into queues to their consumers, until told to stop."""
        channel = self._connect()
        channel.basic_qos(prefetch_count=64)
        for queue, consumer in consumers.items():
            channel.basic_consume(queue, _callback(consumer))
        while not stop.is_set():
            channel.connection.process_data_events(time_limit=0.1)
        channel.connection.close()

    def credentials(self, endpoint: str) -> dict[str, Any]:
        """Return what the service tells an endpoint about its queues."""

        def inbound(kind: str) -> dict[str, Any]:
            queue = f"{endpoint}.{kind}"
            return {"connection_url": self.url, "exchange": kind, "queue": queue}

        def outbound(kind: str) -> dict[str, Any]:
            publish = {
                "exchange": _EXCHANGE,
                "routing_key": f"{endpoint}.{kind}",
                "mandatory": True,
                "properties": {
                    "delivery_mode": 2,
                    "content_type": "application/octet-stream",
                },
            }
            return {
                "connection_url": self.url,
                "exchange": _EXCHANGE,
                "queue": kind,
                "queue_publish_kwargs": publish,
            }

        return {
            "endpoint_id": endpoint,
            "task_queue_info": inbound("tasks"),
            "command_queue_info": inbound("commands"),
            "result_queue_info": outbound(RESULTS),
            "heartbeat_queue_info": outbound(HEARTBEATS),
        }


def _callback(consumer: Callable[[bytes], None]) -> Callable[..., None]:
    def consume(channel: Any, method: Any, _: Any, body: bytes) -> None:
        try:
            consumer(body)
        except Exception:
            traceback.print_exc()  # Shown beside the test that waits for it in vain.
        channel.basic_ack(method.delivery_tag)

    return consume
