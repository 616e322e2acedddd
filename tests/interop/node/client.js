// Calls interop connectors through gateways, as any program with grpc-js would, and prints one line
// of JSON for each try: its name, and what was wrong or an empty string.
// usage: client.js GATEWAY-ADDRESS/CASE...
import assert from "node:assert/strict";
import process from "node:process";

import grpc from "@grpc/grpc-js";

import { LARGEST_MESSAGE, load } from "./proto.js";

const CALLS = 200;
const AT_ONCE = 50;
const FAILURE = "no such order: größer als 50 %";
const GZIP = 2; // grpc.compressionAlgorithms

const { Greeter } = load("demo.proto").demo;

function connect(address, options = {}) {
  return new Greeter(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": LARGEST_MESSAGE,
    ...options,
  });
}

// The reply and the trailers of a call; throws what grpc-js makes of a failure.
function call(client, method, request, { metadata = {}, ...options } = {}) {
  const sent = new grpc.Metadata();
  for (const [name, value] of Object.entries(metadata)) sent.set(name, value);
  return new Promise((resolve, reject) => {
    let reply;
    const started = client[method](request, sent, options, (error, received) => {
      reply = received;
      if (error) reject(error);
    });
    started.on("status", ({ metadata: trailers }) => resolve({ reply, trailers }));
  });
}

async function echo(client, name, padding = Buffer.alloc(0)) {
  const { reply } = await call(client, "Hello", { name, padding });
  assert.equal(reply.greeting, name);
  assert.ok(padding.equals(reply.padding), "other bytes came back");
}

async function fails(calling, code, details) {
  const error = await calling.then(
    () => assert.fail("it did not fail"),
    (error) => error,
  );
  assert.equal(grpc.status[error.code], grpc.status[code], error.message);
  if (details !== undefined) assert.equal(error.details, details);
  return error;
}

async function manyAtOnce(client) {
  let next = 0;
  const work = async () => {
    while (next < CALLS) await echo(client, String(next++));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

async function inBothDirections(client) {
  const trace = Buffer.from([0x00, 0xff, 0x80, 0x20, 0x0a]);
  const metadata = { "echo-note": "a, b=c", "echo-trace-bin": trace };
  const { trailers } = await call(client, "Hello", {}, { metadata });
  assert.deepEqual(trailers.get("note"), ["a, b=c"]);
  assert.deepEqual(trailers.get("trace-bin"), [trace]);
}

// A google.rpc.Status with nothing but its code and one detail, a StringValue "shop".
const DETAILS = Buffer.concat([
  Buffer.from([0x08, 0x05, 0x1a, 0x39, 0x0a, 0x2f]),
  Buffer.from("type.googleapis.com/google.protobuf.StringValue"),
  Buffer.from([0x12, 0x06, 0x0a, 0x04]),
  Buffer.from("shop"),
]);

async function details(client) {
  const metadata = { interop: "fail", "echo-grpc-status-details-bin": DETAILS };
  const error = await fails(
    call(client, "Hello", {}, { metadata }),
    grpc.status.NOT_FOUND,
    FAILURE,
  );
  assert.deepEqual(error.metadata.get("grpc-status-details-bin"), [DETAILS]);
}

async function timeoutTold(client) {
  const options = { metadata: { interop: "timeout" }, deadline: Date.now() + 9000 };
  const { trailers } = await call(client, "Hello", {}, options);
  const [seconds] = trailers.get("seen-timeout").map(Number);
  assert.ok(seconds >= 5 && seconds <= 10, `the connector was given ${seconds} seconds of 9`);
}

async function cancel(client) {
  const metadata = new grpc.Metadata();
  metadata.set("interop", "wait");
  const calling = new Promise((resolve, reject) => {
    const started = client.Hello({}, metadata, (error) => (error ? reject(error) : resolve()));
    setTimeout(() => started.cancel(), 200);
  });
  await fails(calling, grpc.status.CANCELLED);
}

async function gzip(address) {
  const client = connect(address, { "grpc.default_compression_algorithm": GZIP });
  await echo(client, "y".repeat(1_000_000));
  client.close();
}

async function unknownService(address) {
  const Nobody = grpc.makeGenericClientConstructor({
    Home: { ...Greeter.service.Hello, path: "/no.Body/Home" },
  });
  const client = new Nobody(address, grpc.credentials.createInsecure());
  const problem = "no connector serves no.Body";
  await fails(call(client, "Home", {}), grpc.status.UNAVAILABLE, problem);
  client.close();
}

const CASES = {
  echo: (client) => echo(client, "grüß dich", Buffer.from([0, 1, 255])),
  empty: (client) => echo(client, ""),
  large: (client) => echo(client, "", Buffer.alloc(10_000_000, "x")),
  gzip: (_, address) => gzip(address),
  metadata: inBothDirections,
  many: manyAtOnce,
  error: (client) => {
    const calling = call(client, "Hello", {}, { metadata: { interop: "fail" } });
    return fails(calling, grpc.status.NOT_FOUND, FAILURE);
  },
  details,
  "unknown method": (client) => {
    const problem = "no such method: /demo.Greeter/Goodbye";
    return fails(call(client, "Goodbye", {}), grpc.status.UNIMPLEMENTED, problem);
  },
  "unknown service": (_, address) => unknownService(address),
  deadline: (client) => {
    const options = { metadata: { interop: "wait" }, deadline: Date.now() + 300 };
    return fails(call(client, "Hello", {}, options), grpc.status.DEADLINE_EXCEEDED);
  },
  "timeout told": timeoutTold,
  cancel,
};

for (const one of process.argv.slice(2)) {
  const [address, name] = one.split("/");
  const client = connect(address);
  const problem = await Promise.resolve(CASES[name](client, address)).then(
    () => "",
    (error) => error.message || String(error),
  );
  console.log(JSON.stringify({ try: one, problem }));
  client.close();
}
