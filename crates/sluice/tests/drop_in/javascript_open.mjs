// The published JavaScript client without a token, against a system that lets everybody in.

import assert from "node:assert/strict";
import { FLOW, PASSAGE, QUESTION, main, token, withSocket } from "./support.mjs";

export const cases = {
  async an_anonymous_client_lists_flows_and_asks() {
    assert.equal(token, undefined);
    await withSocket(async (socket) => {
      assert.ok((await socket.flows().getFlows()).includes(FLOW));
      assert.ok((await socket.flow(FLOW).documentRag(QUESTION)).includes(PASSAGE));
    });
  },

  async any_token_is_accepted() {
    await withSocket(async (socket) => assert.ok((await socket.flows().getFlows()).includes(FLOW)), "whatever");
  },
};

await main(cases);
