// The page's side of worker.js: a model whose calls are promises.
import { advice, tooOld } from "./load.js";

export class Model {
  /** Load a bundle, with `report(loaded, total)` in bytes; resolves when it is ready. */
  static async load(bundle, home, report = () => {}) {
    const reason = home.protocol === "file:" ? advice(home.protocol) : tooOld();
    if (reason) throw new Error(reason);
    const model = new Model(new Worker(new URL("worker.js", home), { type: "module" }), report);
    const generate = new URL("../../generate/", home);
    try {
      const loaded = await model.call("load", `${generate}${bundle}/model.json`, `${generate}runtime.json`);
      return Object.assign(model, loaded); // about, clips
    } catch (error) {
      model.worker.terminate();
      throw error;
    }
  }

  constructor(worker, report) {
    this.worker = worker;
    this.waiting = new Map();
    this.asked = 0;
    worker.addEventListener("message", ({ data }) => {
      if (data.id === undefined) return report(data.loaded, data.total);
      const { done, failed } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if (data.error === undefined) done(data.value);
      else failed(new Error(data.error));
    });
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      const error = new Error(event.message ? `The model stopped: ${event.message}` : advice("http:"));
      for (const { failed } of this.waiting.values()) failed(error);
      this.waiting.clear();
    });
  }

  call(name, ...given) {
    return new Promise((done, failed) => {
      const id = this.asked++;
      this.waiting.set(id, { done, failed });
      this.worker.postMessage({ id, call: name, arguments: given });
    });
  }

  begin = (...given) => this.call("begin", ...given);
  fork = (...given) => this.call("fork", ...given);
  forget = (...given) => this.call("forget", ...given);
  read = (...given) => this.call("read", ...given);
  step = (...given) => this.call("step", ...given);
  inside = (...given) => this.call("inside", ...given);
  codewords = (...given) => this.call("codewords", ...given);
}
