// Calls the streaming methods of interop connectors through gateways, as any program with grpc-js
// would, and prints one line of JSON for each try: its name, and what was wrong or an empty string.
// usage: streams.js GATEWAY-ADDRESS/CASE...
import assert from "node:assert/strict";
import process from "node:process";

import grpc from "@grpc/grpc-js";

import { LARGEST_MESSAGE } from "./proto.js";

const MANY = 5000;
const LARGE = 1 << 20;

const same = (bytes) => bytes;
const method = (name, requestStream, responseStream) => ({
  path: `/echo.Streams/${name}`,
  requestStream,
  responseStream,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});
const Streams = grpc.makeGenericClientConstructor({
  Down: method("Down", false, true),
  Up: method("Up", true, false),
  Echo: method("Echo", true, true),
});

const numbers = (count) => Array.from({ length: count }, (_, i) => Buffer.from(String(i)));

// All that comes of a call; throws what grpc-js makes of a failure.
async function all(call) {
  const came = [];
  for await (const message of call) came.push(message);
  return came;
}

async function say(call, messages) {
  for (const message of messages) {
    if (!call.write(message)) await new Promise((resolve) => call.once("drain", resolve));
  }
  call.end();
}

function is(came, wanted) {
  assert.equal(came.length, wanted.length);
  for (const [i, message] of came.entries()) assert.ok(message.equals(wanted[i]), `at ${i}`);
}

async function down(client, count) {
  is(await all(client.Down(Buffer.from(String(count)))), numbers(count));
}

async function up(client, messages) {
  const total = messages.reduce((sum, message) => sum + message.length, 0);
  const answer = await new Promise((resolve, reject) => {
    const call = client.Up((error, answer) => (error ? reject(error) : resolve(answer)));
    say(call, messages);
  });
  assert.equal(String(answer), String(total));
}

async function echo(client, messages) {
  const call = client.Echo();
  const [came] = await Promise.all([all(call), say(call, messages)]);
  is(came, messages);
}

async function fails(calling, code, details) {
  const error = await calling.then(
    () => assert.fail("it did not fail"),
    (error) => error,
  );
  assert.equal(grpc.status[error.code], grpc.status[code], error.message);
  if (details !== undefined) assert.equal(error.details, details);
}

async function inBothDirections(client) {
  const trace = Buffer.from([0x00, 0xff, 0x80, 0x20, 0x0a]);
  const metadata = new grpc.Metadata();
  metadata.add("echo-note", "a");
  metadata.add("echo-trace-bin", trace);
  const call = client.Echo(metadata);
  const header = new Promise((resolve) => call.once("metadata", resolve));
  const status = new Promise((resolve) => call.once("status", resolve));
  call.on("data", () => {});
  const initial = await header; // before anything was said
  call.end(Buffer.from("a"));
  for (const came of [initial, (await status).metadata]) {
    assert.deepEqual(came.get("echo-note"), ["a"]);
    assert.deepEqual(came.get("echo-trace-bin"), [trace]);
  }
}

async function cancel(client) {
  const call = client.Down(Buffer.from("1000000000"));
  call.once("data", () => setTimeout(() => call.cancel(), 100));
  await fails(all(call), grpc.status.CANCELLED);
}

const CASES = {
  down: (client) => down(client, 10),
  "down many": (client) => down(client, MANY),
  up: (client) => up(client, numbers(10)),
  echo: (client) => echo(client, [...numbers(10), Buffer.alloc(0)]),
  "echo large": (client) => echo(client, [1, 2, 3, 4].map((i) => Buffer.alloc(LARGE, i))),
  metadata: inBothDirections,
  error: (client) => {
    const calling = all(client.Down(Buffer.from("no number")));
    return fails(calling, grpc.status.INVALID_ARGUMENT, "keine Zahl, 100 % größer");
  },
  "cancel down": cancel,
};

for (const one of process.argv.slice(2)) {
  const [address, name] = one.split("/");
  const client = new Streams(address, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": LARGEST_MESSAGE,
  });
  const began = performance.now();
  const problem = await Promise.resolve(CASES[name](client)).then(
    () => "",
    (error) => error.message || String(error),
  );
  console.log(JSON.stringify({ try: one, problem, ms: Math.round(performance.now() - began) }));
  client.close();
}
