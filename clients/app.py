"""The ClientApp, a courier: it unpacks a message, calls the vault, packs the answer."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.simulated import simulated_vault
from wire.codec import WireError, pack, unpack
from wire.messages import Evaluate, Introduce, Learn, Refused, Score, Synthesize


def handle(message: Message, context: Context) -> Message:
    """The answer to one request; what the vault refuses travels as a reason."""
    try:
        request, arrays = unpack(message.content)
    except WireError as failure:
        return Message(pack(Refused(str(failure), "request")), reply_to=message)
    if "partition-id" not in context.node_config:  # a real site's data must not be opened by code that the server ships
        reason = "this node is not a simulated one, and vaults that real sites run themselves are not there yet"
        return Message(pack(Refused(reason, "request")), reply_to=message)
    vault = simulated_vault(context, pooled=isinstance(request, Learn) and request.scope == "pooled")
    returned = None
    match request:
        case Introduce():
            answer = vault.introduce()
        case Synthesize():
            answer = vault.synthesize(request)
        case Score():
            answer = vault.score(request)
        case Learn():
            answer, returned = vault.learn(request, arrays)
        case Evaluate():
            answer = vault.evaluate(request)
        case _:
            answer = Refused(f"{type(request).__name__} is not a request", "request")
    return Message(pack(answer, returned), reply_to=message)


app = ClientApp()
app.query("introduce")(handle)
app.query("synthesize")(handle)
app.query("score")(handle)
app.train("learn")(handle)
app.evaluate("evaluate")(handle)
