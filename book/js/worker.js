// The Web Worker: ONNX Runtime and a World (world.js), so that the page never waits.
//
// A request is {id, call, arguments}, its answer {id, value} or {id, error}. Calls: load(model, runtime), with
// addresses of model.json and runtime.json, then those of World: begin, fork, forget, read, step, inside, codewords. While it loads,
// {loaded, total} come in between. Requests are answered in order, one frame each: to cancel, ask for no more.
// The page's side of it is model.js.
import * as ort from "onnxruntime-web/wasm";
import { download, json } from "./load.js";
import { World } from "./world.js";

let world;

async function load(model, runtime) {
  const [about, engine] = await Promise.all([json(new URL(model)), json(new URL(runtime))]);
  const graphs = ["encode", "step", "decode"];
  const files = [
    { url: new URL(engine.name, runtime), bytes: engine.bytes },
    ...[...graphs, "clips"].map((name) => ({ url: new URL(about.files[name].name, model), bytes: about.files[name].bytes })),
  ];
  const contents = await download(files, (loaded, total) => postMessage({ loaded, total }));
  Object.assign(ort.env.wasm, { wasmBinary: contents[0], numThreads: 1 }); // more would need headers that static hosts don't send
  ort.env.logLevel = "error";
  const sessions = {};
  for (const [i, name] of graphs.entries()) {
    sessions[name] = await ort.InferenceSession.create(new Uint8Array(contents[1 + i]), { executionProviders: ["wasm"] });
  }
  world = new World(about, (graph, feeds) => sessions[graph].run(feeds), (type, data, shape) => new ort.Tensor(type, data, shape));
  return { about, clips: new Uint8Array(contents.at(-1)) };
}

async function answer({ data: { id, call, arguments: given } }) {
  try {
    postMessage({ id, value: await (call === "load" ? load(...given) : world[call](...given)) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
}

let last = Promise.resolve();
addEventListener("message", (message) => (last = last.then(() => answer(message))));
