// The published JavaScript client against a system without a language model.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { FLOW, PASSAGE, QUESTION, collected, main, refused, waitFor, withSocket } from "./support.mjs";

const fresh = (word) => `${word}-${randomUUID().slice(0, 8)}`;

export const cases = {
  async flows_are_listed_and_read() {
    await withSocket(async (socket) => {
      assert.ok((await socket.flows().getFlows()).includes(FLOW));
      assert.equal((await socket.flows().getFlow(FLOW))["blueprint-name"], "document-rag");
      assert.ok((await socket.flows().getFlowBlueprints()).includes("document-rag"));
      assert.ok("interfaces" in (await socket.flows().getFlowBlueprint("document-rag")));
    });
  },

  async a_flow_is_started_used_and_stopped() {
    await withSocket(async (socket) => {
      const flow = fresh("flow");
      await socket.flows().startFlow(flow, "document-rag", "from a browser", { "chunk-size": "700" });
      assert.equal((await socket.flow(flow).embeddings(["ready at once"])).length, 1);
      await refused("already exists", () => socket.flows().startFlow(flow, "document-rag", "again"));
      await socket.flows().stopFlow(flow);
      assert.ok(!(await socket.flows().getFlows()).includes(flow));
      await refused(flow, () => socket.flow(flow).embeddings(["gone"]));
    });
  },

  async config_values_are_put_read_listed_and_deleted() {
    await withSocket(async (socket) => {
      const [config, type] = [socket.config(), fresh("kind")];
      await config.putConfig([{ type, key: "a", value: "ü" }]);
      const read = await config.getConfig([{ type, key: "a" }]);
      assert.equal(read.values[0].value, "ü");
      assert.deepEqual((await config.list(type)).directory, ["a"]);
      assert.equal((await config.getConfigAll()).config[type].a, "ü");
      await config.deleteConfig({ type, key: "a" });
      assert.deepEqual((await config.list(type)).directory, []);
    });
  },

  async a_document_is_loaded_answered_from_and_removed() {
    await withSocket(async (socket) => {
      const [library, id] = [socket.librarian(), `urn:${fresh("doc")}`];
      const content = Buffer.from("The baker's cat sleeps on the warm oven every Thursday.\n");
      await library.loadDocument(content.toString("base64"), "text/plain", "Cat", "", ["pets"], id, []);
      assert.equal((await library.getDocuments()).find((document) => document.id === id).title, "Cat");
      assert.equal((await library.getDocumentMetadata(id)).title, "Cat");
      const run = fresh("run");
      await library.addProcessing(run, id, FLOW);
      assert.ok((await library.getProcessing()).some((one) => one.id === run));
      const flow = socket.flow(FLOW);
      await waitFor("the cat", async () => (await flow.documentRag("Where does the baker's cat sleep?")).includes("oven"));
      await library.removeDocument(id);
      assert.ok(!(await library.getDocuments()).some((document) => document.id === id));
    });
  },

  async a_document_is_uploaded_in_chunks_and_streamed_back() {
    await withSocket(async (socket) => {
      const [library, id] = [socket.librarian(), `urn:${fresh("big")}`];
      const content = Buffer.alloc(2_500_000, "Chunk by chunk it comes. ");
      const metadata = { id, time: 1, kind: "text/plain", title: "Big", comments: "", tags: [] };
      const upload = await library.beginUpload(metadata, content.length, 1_048_576);
      const size = upload["chunk-size"];
      for (let index = 0; index < upload["total-chunks"]; index++) {
        const chunk = content.subarray(index * size, (index + 1) * size);
        await library.uploadChunk(upload["upload-id"], index, chunk.toString("base64"));
      }
      await library.completeUpload(upload["upload-id"]);
      const parts = [];
      await new Promise((resolve, reject) =>
        library.streamDocument(
          id,
          (part, index, _total, complete) => {
            if (part) parts[index] = Buffer.from(part, "base64");
            if (complete) resolve();
          },
          reject,
          1_048_576,
        ),
      );
      assert.ok(Buffer.concat(parts).equals(content));
      await library.removeDocument(id);
    });
  },

  async an_answer_comes_whole_or_streamed() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      assert.ok((await flow.documentRag(QUESTION)).includes(PASSAGE));
      const events = [];
      const streamed = await collected((receive, fail) =>
        flow.documentRagStreaming(QUESTION, receive, fail, 10, "default", (event) => events.push(event)),
      );
      assert.ok(streamed.text.includes(PASSAGE), streamed.text);
      assert.ok(events.length >= 4 && events.every((event) => event.explainTriples.length > 0));
    });
  },

  async triples_and_embeddings_are_queried() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      await collected((receive, fail) => flow.documentRagStreaming(QUESTION, receive, fail, 10));
      const graph = "urn:graph:retrieval";
      const query = { t: "i", i: "https://trustgraph.ai/ns/query" };
      const question = { t: "l", v: QUESTION };
      const triples = await waitFor("the question in the graph", async () => {
        const found = await flow.triplesQuery(undefined, query, question, 5, "default", graph);
        return found.length > 0 && found;
      });
      assert.ok(triples.every((triple) => triple.p.i === query.i && triple.o.v === QUESTION));
      const vectors = await flow.embeddings(["one", "two"]);
      assert.equal(vectors.length, 2);
    });
  },

  async collections_are_made_listed_and_deleted() {
    await withSocket(async (socket) => {
      const [collections, name] = [socket.collectionManagement(), fresh("collection")];
      await collections.updateCollection(name, "Mine", "a few things", ["x"]);
      assert.ok(JSON.stringify(await collections.listCollections()).includes(name));
      await collections.deleteCollection(name);
      assert.ok(!JSON.stringify(await collections.listCollections()).includes(name));
    });
  },

  async calls_share_a_socket_without_mixing_their_answers() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      const texts = Array.from({ length: 24 }, (_, number) => `text number ${number}`);
      const [single, together] = await Promise.all([
        Promise.all(texts.map((text) => flow.embeddings([text]).then(([vector]) => vector))),
        flow.embeddings(texts),
      ]);
      assert.deepEqual(single, together);
    });
  },

  async a_model_that_is_not_configured_is_said() {
    await withSocket(async (socket) => {
      const flow = socket.flow(FLOW);
      await refused("SLUICE_LLM_URL", () => flow.textCompletion("You are terse.", "Hello?"));
      await refused("SLUICE_LLM_URL", () =>
        collected((receive, fail) => flow.textCompletionStreaming("You are terse.", "Hello?", receive, fail)),
      );
    });
  },

  async a_wrong_token_is_refused() {
    await withSocket((socket) => refused("auth", () => socket.flows().getFlows()), "tg_wrong");
  },
};

await main(cases);
