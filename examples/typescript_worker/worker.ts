// Worker in TypeScript, from the contract alone. It repeats each message; a message that begins with `stream ` is
// repeated word by word. Start a router, then, in this folder, with Node 22.18 or newer:
//
//     npm install && sh generate.sh && node worker.ts
//
// Variables: TRUNKLINE_ROUTER (several that share one database, separated by commas), TRUNKLINE_TENANT,
// TRUNKLINE_AGENT, TRUNKLINE_API_KEY, TRUNKLINE_TLS=true or TRUNKLINE_CA=ca.pem, and WORD_MS, the pause before each
// word.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { create, getOption, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { AgentService, AttachRequestSchema } from "./gen/trunkline/v1/agent_service_pb.js";
import type {
  AttachRequest,
  AttachResponse,
  AttachWelcome,
  Delivery,
  ReplyEnded,
  ReplyOpened,
  SettlementSchema,
} from "./gen/trunkline/v1/agent_service_pb.js";
import { contract_minor, file_trunkline_v1_edge_service } from "./gen/trunkline/v1/edge_service_pb.js";
import { type Message, MessageState } from "./gen/trunkline/v1/message_pb.js";

const {
  TRUNKLINE_ROUTER: routers = "127.0.0.1:50051",
  TRUNKLINE_TENANT: tenant = "demo",
  TRUNKLINE_AGENT: agent = "echo",
  TRUNKLINE_API_KEY: apiKey,
  TRUNKLINE_TLS: tls,
  TRUNKLINE_CA: ca,
  WORD_MS: wordMs = "50",
} = process.env;

const MAX_MESSAGE_BYTES = 16 << 20; // a message can have 12 MiB
const MIN_BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 2000;
// Statuses that attaching again does not change, unless the router adds a RetryInfo.
const FINAL = new Set([
  Code.InvalidArgument,
  Code.NotFound,
  Code.FailedPrecondition,
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.Unimplemented,
]);

const stopping = new AbortController();
for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stopping.abort());

// Only one router owns the log; the others refuse streams.
const clients = routers.split(",").map((router) =>
  createClient(
    AgentService,
    createGrpcTransport({
      baseUrl: `${ca || tls === "true" ? "https" : "http"}://${router}`,
      nodeOptions: ca ? { ca: readFileSync(ca) } : {},
      readMaxBytes: MAX_MESSAGE_BYTES,
      pingIntervalMs: 20_000,
      pingTimeoutMs: 10_000,
    }),
  ),
);

type Request = MessageInitShape<typeof AttachRequestSchema>;

class Cancelled extends Error {}
class Ended extends Error {}

/**
 * One stream. Its answers end with it: the router redelivers what is not settled, and a streamed reply continues where
 * the log ends.
 */
class Session {
  readonly #over = new AbortController();
  /** Requests that are not taken yet; each answer waits until its own is. */
  #waiting: { request: Request; taken: () => void }[] = [];
  #wake = () => {};
  /** Deliveries until the router has confirmed their settlements. */
  readonly #held = new Map<bigint, AbortController>();
  readonly #replies = new Map<number, StreamedReply>();
  #opens = 0;
  #draining = false;

  /** Serves until the stream breaks, which throws, or is drained. */
  async serve(client: (typeof clients)[number]): Promise<void> {
    const headers = apiKey ? { authorization: `Bearer ${apiKey}` } : undefined;
    const drain = () => this.#drain();
    try {
      for await (const response of client.attach(this.#batches(), { headers, signal: this.#over.signal })) {
        if (response.welcome) {
          console.log(`Agent \`${agent}\` of tenant \`${tenant}\` is attached to ${routers}`);
          stopping.signal.addEventListener("abort", drain);
          void this.#extendLeases(response.welcome);
        }
        this.#receive(response);
      }
      throw new ConnectError("the router ended the stream", Code.Unavailable);
    } finally {
      stopping.signal.removeEventListener("abort", drain);
      this.#over.abort(new Error("the stream broke"));
    }
  }

  /** The hello, then batches: each contains everything that is ready. */
  async *#batches(): AsyncGenerator<Request> {
    const contractMinor = getOption(file_trunkline_v1_edge_service, contract_minor);
    yield { hello: { tenant, agents: [agent], capacity: 100, workerId: `node:${process.pid}`, contractMinor } };
    while (!this.#over.signal.aborted) {
      if (this.#waiting.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
      const batch: AttachRequest = create(AttachRequestSchema);
      for (const { request, taken } of this.#waiting.splice(0)) {
        const { settlements, extend, opens, deltas, ends, drain } = create(AttachRequestSchema, request);
        batch.settlements.push(...settlements);
        batch.extend.push(...extend);
        batch.opens.push(...opens);
        batch.deltas.push(...deltas);
        batch.ends.push(...ends);
        batch.drain ||= drain;
        taken();
      }
      yield batch;
    }
  }

  #send(request: Request): Promise<void> {
    return new Promise((taken) => {
      this.#waiting.push({ request, taken });
      this.#wake();
    });
  }

  /** Sends something three times in the shorter lease; without, the router takes the worker for dead. */
  async #extendLeases({ leaseS, replyLeaseS }: AttachWelcome): Promise<void> {
    while (!this.#over.signal.aborted) {
      await sleep((Math.min(leaseS, replyLeaseS) * 1000) / 3);
      await this.#send({ extend: [...this.#held.keys()] });
    }
  }

  /** Takes no more deliveries, and ends the stream once all are settled. */
  #drain(): void {
    this.#draining = true;
    void this.#send({ drain: true });
    console.log("draining");
    this.#endIfDrained();
  }

  #endIfDrained(): void {
    if (this.#draining && this.#held.size === 0) this.#over.abort(new Error("drained"));
  }

  #receive(response: AttachResponse): void {
    for (const delivery of response.deliveries) {
      // Its lease ended while this process was stopped; it is still being answered.
      if (this.#held.has(delivery.deliveryId)) continue;
      const cancel = new AbortController();
      this.#held.set(delivery.deliveryId, cancel);
      void this.#settle(delivery, AbortSignal.any([cancel.signal, this.#over.signal]));
    }
    for (const id of response.cancelled) this.#held.get(id)?.abort(new Cancelled("readers cancelled the reply"));
    for (const opened of response.opened) this.#replies.get(opened.reply)?.opened.resolve(opened);
    for (const ended of response.ended) {
      this.#replies.get(ended.reply)?.stop.abort(new Ended("the reply has ended"));
      this.#replies.get(ended.reply)?.ended.resolve(ended);
    }
    // After the ends, which are the reason if deltas are refused.
    for (const { reply, error } of response.progress) {
      if (error) this.#replies.get(reply)?.stop.abort(new Error(error.message));
    }
    for (const { deliveryId, error } of response.results) {
      if (error) console.error(`delivery ${deliveryId} is not settled: ${error.message}`);
      // The router redelivers it on the next stream.
      if (error?.retryable) this.#over.abort(new Error(error.message));
      this.#held.delete(deliveryId);
    }
    this.#endIfDrained();
  }

  /** Answers a delivery. A settlement with neither replies nor an outcome acknowledges it. */
  async #settle({ deliveryId, message, attempt }: Delivery, signal: AbortSignal): Promise<void> {
    const settlement: MessageInitShape<typeof SettlementSchema> = { deliveryId };
    const asked = textOf(message!);
    const text = `You said: ${asked.replace(/^stream /, "")}`;
    try {
      if (asked.startsWith("stream ")) await this.#stream(deliveryId, message!.id, text, signal);
      else settlement.replies = [{ parts: [{ content: { case: "text", value: { text } } }] }];
    } catch (error) {
      if (this.#over.signal.aborted) return;
      console.error(`the answer to message ${message!.id} stopped: ${error}`);
      const afterMs = 1000 * 2 ** Math.min(attempt - 1, 6);
      settlement.outcome = { case: "retry", value: { afterMs, reason: "the answer stopped" } };
    }
    await this.#send({ settlements: [settlement] });
  }

  /** Writes a reply word by word. The same key on each attempt, of any worker, continues the same reply. */
  async #stream(deliveryId: bigint, key: string, text: string, signal: AbortSignal): Promise<void> {
    const reply = ++this.#opens;
    const reports = new StreamedReply();
    this.#replies.set(reply, reports);
    const stop = AbortSignal.any([signal, reports.stop.signal]);
    try {
      await this.#send({ opens: [{ reply, key, target: { case: "deliveryId", value: deliveryId } }] });
      const { message, error } = await this.#whileAttached(reports.opened.promise);
      if (!message) throw new Error(error?.message);
      // Nothing can be added to an expired reply.
      if (message.state === MessageState.EXPIRED) return await this.#stream(deliveryId, `${key}~`, text, signal);
      if (message.state !== MessageState.OPEN) return; // answered or cancelled
      let index = message.nextIndex;
      let state = MessageState.COMPLETE;
      const sent = textOf(message);
      try {
        for (const word of text.slice(text.startsWith(sent) ? sent.length : 0).match(/\s*\S+/g) ?? []) {
          await sleep(Number(wordMs), undefined, { signal: stop });
          await this.#send({ deltas: [{ reply, deltas: [{ index: index++, content: { case: "text", value: word } }] }] });
        }
      } catch (error) {
        if (stop.reason instanceof Cancelled) state = MessageState.CANCELLED;
        else if (!(stop.reason instanceof Ended)) throw stop.reason ?? error;
      }
      if (!(stop.reason instanceof Ended)) await this.#send({ ends: [{ reply, state, nextIndex: index }] });
      const ended = await this.#whileAttached(reports.ended.promise);
      if (ended.error) throw new Error(ended.error.message);
      // The next attempt starts another one.
      if (ended.state === MessageState.EXPIRED) throw new Error("the reply expired");
    } finally {
      this.#replies.delete(reply);
    }
  }

  /** Waits for a report of the router; throws when the stream breaks. */
  #whileAttached<T>(report: Promise<T>): Promise<T> {
    const { signal } = this.#over;
    return new Promise((resolve, reject) => {
      const broke = () => reject(signal.reason);
      signal.addEventListener("abort", broke, { once: true });
      void report.then(resolve).finally(() => signal.removeEventListener("abort", broke));
    });
  }
}

/** The router's reports on one streamed reply. */
class StreamedReply {
  readonly stop = new AbortController();
  readonly opened = Promise.withResolvers<ReplyOpened>();
  readonly ended = Promise.withResolvers<ReplyEnded>();
}

function textOf(message: Message): string {
  return message.parts.map(({ content }) => (content.case === "text" ? content.value.text : "")).join("");
}

/** Milliseconds to wait at least before attaching again; undefined if that is of no use. */
function retryDelayMs(error: ConnectError): number | undefined {
  const [retry] = error.findDetails(RetryInfoSchema);
  if (retry) return Number(retry.retryDelay?.seconds ?? 0) * 1000 + (retry.retryDelay?.nanos ?? 0) / 1e6;
  return FINAL.has(error.code) ? undefined : 0;
}

// Attaches, and attaches again whenever the stream breaks, to the next router: exponential backoff with full jitter, so
// that the workers of a restarted router do not come back at once.
let attempt = 0;
for (let backoffMs = MIN_BACKOFF_MS; !stopping.signal.aborted; backoffMs = Math.min(2 * backoffMs, MAX_BACKOFF_MS)) {
  const began = Date.now();
  try {
    await new Session().serve(clients[attempt++ % clients.length]!);
  } catch (thrown) {
    if (stopping.signal.aborted) break;
    const error = ConnectError.from(thrown);
    const delayMs = retryDelayMs(error);
    if (delayMs === undefined) {
      console.error(error.message);
      process.exit(1);
    }
    console.error(`not attached to ${routers}, trying again: ${error.message}`);
    if (Date.now() - began > MAX_BACKOFF_MS) backoffMs = MIN_BACKOFF_MS;
    await sleep(delayMs + Math.random() * backoffMs, undefined, { signal: stopping.signal }).catch(() => {});
  }
}
process.exit(0); // an idle connection would keep the process
