// The published JavaScript client against a system with a language model behind it.

import assert from "node:assert/strict";
import { FLOW, QUESTION, collected, main, refused, withSocket } from "./support.mjs";

// What the model of these tests says to any question, and where it shows that it was given the passage.
const GREETING = "The model greets you.";
const INFORMED = "The key hangs where the notes say: behind the blue door.";

export const cases = {
  async a_text_is_completed_whole_or_streamed() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      assert.equal(await flow.textCompletion("You are terse.", "Hello?"), GREETING);
      const streamed = await collected((receive, fail) =>
        flow.textCompletionStreaming("You are terse.", "Hello?", receive, fail),
      );
      assert.deepEqual(streamed, { text: GREETING, metadata: { in_token: 11, out_token: 4, model: "tiny-test" } });
    });
  },

  async a_prompt_is_filled_in_and_answered() {
    await withSocket(async (socket) => {
      // The client hands terms on as they are, and the service reads each as JSON.
      const terms = { question: JSON.stringify("Hello?") };
      const streamed = await collected((receive, fail) =>
        socket.flow(FLOW).promptStreaming("question", terms, receive, fail),
      );
      assert.equal(streamed.text, GREETING);
    });
  },

  async a_question_is_answered_by_the_model_from_the_passage() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      assert.equal(await flow.documentRag(QUESTION), INFORMED);
      const streamed = await collected((receive, fail) => flow.documentRagStreaming(QUESTION, receive, fail, 10));
      assert.equal(streamed.text, INFORMED);
      assert.equal(streamed.metadata.model, "tiny-test");
    });
  },

  async a_failing_model_is_said_with_its_reason() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      const reason = "the model is on holiday";
      await refused(reason, () => flow.textCompletion("You are terse.", "Please fail."));
      await refused(reason, () =>
        collected((receive, fail) => flow.textCompletionStreaming("You are terse.", "Please fail.", receive, fail)),
      );
    });
  },
};

await main(cases);
