"""The ClientApp, a courier: it unpacks a message, calls the vault, packs the answer."""

from __future__ import annotations

from fedduet.clients.courier import ask_remote
from fedduet.wire.codec import WireError, pack, unpack
from fedduet.wire.messages import Learn, Refused
from flwr.app import Context, Message
from flwr.clientapp import ClientApp


def handle(message: Message, context: Context) -> Message:
    """The answer to one request; what the vault refuses travels as a reason."""
    try:
        request, arrays = unpack(message.content)
    except WireError as failure:
        return Message(pack(Refused(str(failure), "request")), reply_to=message)
    # a real site: its data is opened by a process of its own
    if url := context.node_config.get("vault"):
        answer, returned = ask_remote(str(url), request, arrays)
    elif "partition-id" in context.node_config:
        # imports torch, which a courier does not need
        from fedduet.clients.simulated import simulated_vault
        from fedduet.clients.vault.dispatch import ask

        answer, returned = ask(
            simulated_vault(context, isinstance(request, Learn) and request.scope == "pooled"),
            request,
            arrays,
        )
    else:  # a real site's data must not be opened by code that the server ships
        reason = (
            "this node names no vault; start its SuperNode with --node-config"
            " \"vault='unix:///path/to/socket'\""
        )
        answer, returned = Refused(reason, "request"), None
    return Message(pack(answer, returned), reply_to=message)


app = ClientApp()
app.query("introduce")(handle)
app.query("synthesize")(handle)
app.query("score")(handle)
app.train("learn")(handle)
app.evaluate("evaluate")(handle)
app.query("answer")(handle)
