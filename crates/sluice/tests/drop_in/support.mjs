// What every JavaScript script here stands on. A script is run as `node SCRIPT CASE`; a case is a function
// of its list `cases`, without arguments, and fails by throwing.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages live in the folder of builds, not beside this file.
const installed = createRequire(`${process.env.DROP_IN_PACKAGES}/`);
const load = (name) => import(pathToFileURL(installed.resolve(name)));
globalThis.WebSocket ??= (await load("ws")).default;
const { createTrustGraphSocket } = await load("@trustgraph/client");
console.log = () => {};

export const token = process.env.TRUSTGRAPH_TOKEN;
const url = `${process.env.TRUSTGRAPH_URL.replace(/^http/, "ws").replace(/\/$/, "")}/api/v1/socket`;
const PATIENCE_MS = 60_000;

// The documents that every system of these tests holds, put through the flow `main`.
export const FLOW = "main";
export const QUESTION = "Where does the spare key of the pump house hang?";
export const PASSAGE = "behind the blue door";

/** Gives the work a socket of its own, and closes it. */
export async function withSocket(work, as = token) {
  const socket = createTrustGraphSocket("tester", as, url);
  try {
    return await work(socket);
  } finally {
    socket.close();
  }
}

/** The work must fail, and the failure must say this. */
export async function refused(says, work) {
  const failure = await work().then(
    (answer) => assert.fail(`it was not refused but answered ${JSON.stringify(answer)}`),
    (error) => (error instanceof Error ? error.message : JSON.stringify(error)),
  );
  assert.ok(failure.toLowerCase().includes(says.toLowerCase()), `wanted '${says}' in: ${failure}`);
}

/** Collects a stream that is given as a receiver and an error callback. */
export function collected(start) {
  return new Promise((resolve, reject) => {
    const parts = [];
    let last;
    start(
      (part, complete, metadata) => {
        parts.push(part);
        last = metadata ?? last;
        if (complete) resolve({ text: parts.join(""), metadata: last });
      },
      (error) => reject(error instanceof Error ? error : new Error(typeof error === "string" ? error : JSON.stringify(error))),
    );
  });
}

/** Asks until the answer is true; asking takes a moment of its own. */
export async function waitFor(what, question) {
  const until = Date.now() + PATIENCE_MS;
  for (;;) {
    const answer = await question();
    if (answer) return answer;
    assert.ok(Date.now() < until, `waited in vain for ${what}`);
  }
}

/** Runs the chosen case of a script. */
export async function main(cases) {
  const chosen = cases[process.argv[2]];
  setTimeout(() => {
    console.error("the case did not end");
    process.exit(1);
  }, PATIENCE_MS);
  try {
    await chosen();
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
  // The client keeps timers of calls that ended long ago.
  process.exit(0);
}
