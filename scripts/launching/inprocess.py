"""A Flower Grid without Ray or sockets: messages are handled one by one, in this process, when
their replies are pulled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class InProcessGrid(Grid):
    """`nodes` virtual SuperNodes numbered from 1; node i + 1 has partition id i. One reply is made
    per `pull_messages`."""

    def __init__(self, client_app: ClientApp, nodes: int, run_config: Mapping[str, Any]) -> None:
        self._app, self._run = client_app, Run.create_empty(run_id=1)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._contexts = {
            node + 1: Context(
                run_id=1,
                node_id=node + 1,
                node_config={"partition-id": node, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(nodes)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Use `run` as the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All virtual nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; ids in their order."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle the first of `message_ids` that still waits, and return its reply (an error reply
        when the app raised)."""
        first = next((key for key in message_ids if key in self._waiting), None)
        return [] if first is None else [self._handle(self._waiting.pop(first))]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull everything; `timeout` has no meaning when work is done in the call
        itself."""
        return [
            reply
            for key in list(self.push_messages(messages))
            for reply in self.pull_messages([key])
        ]

    def _handle(self, message: Message) -> Message:
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        # a client's failure is an answer to the server, as in every other Flower runtime
        except Exception as failure:
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(
                Error(code=code, reason=f"{type(failure).__name__}: {failure}"), reply_to=message
            )
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        return reply
