"""Worker on generated gRPC stubs. Prints `attached`, then one line for each delivery.

WORKER_MODE: `reply` settles each delivery with a reply, `hold` settles nothing, `leave` accepts one delivery,
settles nothing and ends its stream.
"""

from __future__ import annotations

import json
import os
import queue
import time

import grpc
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, AttachResponse, Reply
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.catalogue import CONTRACT_MINOR


def attach(mode: str) -> None:
    """Serve until the stream breaks."""
    outgoing: queue.SimpleQueue[AttachRequest] = queue.SimpleQueue()
    hello = AttachHello(
        tenant="demo", agents=[os.environ["WORKER_AGENT"]], capacity=100, contract_minor=CONTRACT_MINOR
    )
    outgoing.put(AttachRequest(hello=hello))
    with grpc.insecure_channel(os.environ["TRUNKLINE_ROUTER"]) as channel:
        for batch in AgentServiceStub(channel).Attach(iter(outgoing.get, None)):
            if batch.HasField("welcome"):
                print("attached", flush=True)  # noqa: T201
            handle(batch, mode, outgoing)


def handle(batch: AttachResponse, mode: str, outgoing: queue.SimpleQueue[AttachRequest]) -> None:
    """Print each delivery, and settle it in mode `reply`."""
    answer = AttachRequest()
    for delivery in batch.deliveries:
        text = delivery.message.parts[0].text.text
        print(json.dumps({"text": text, "attempt": delivery.attempt}), flush=True)  # noqa: T201
        settlement = answer.settlements.add(delivery_id=delivery.delivery_id)
        reply = Reply(name="Test worker")
        reply.parts.add().text.text = f"re: {text}"
        settlement.replies.append(reply)
    if mode == "reply" and answer.settlements:
        outgoing.put(answer)


if __name__ == "__main__":
    while True:
        try:
            attach(os.environ["WORKER_MODE"])
        except grpc.RpcError:
            time.sleep(0.05)
