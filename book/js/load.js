// Files with progress, and errors that say what to do.

const MEGABYTE = 1e6;

/** "Loading the model, 7.3 of 24.1 MB". */
export function progressText(loaded, total) {
  if (loaded >= total) return "Starting the model …";
  return `Loading the model, ${(loaded / MEGABYTE).toFixed(1)} of ${(total / MEGABYTE).toFixed(1)} MB`;
}

/** What to do about a page that may not, or could not, load its model. */
export function advice(protocol, status) {
  if (protocol === "file:") {
    return "A page opened from disk may not load the model. Run “make serve”, and open the address that it names.";
  }
  if (status === 404) return "This build of the book has no model for the browser: it was made without npm. Run “make book” again where npm can reach its registry.";
  if (status) return `The server answered ${status} where a part of the model should be. Try again in a while.`;
  return "The model could not be fetched: the connection was lost. Check it, and press the button again.";
}

const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

/** What to say where a browser is too old to run a model, else undefined. */
export function tooOld({ WebAssembly, DecompressionStream } = globalThis) {
  if (WebAssembly?.validate(Uint8Array.from(SIMD)) && DecompressionStream) return undefined;
  return "This browser cannot run the model: it has no WebAssembly with SIMD, or cannot unpack files. Browsers have both since 2023.";
}

async function open(url) {
  const answer = await fetch(url).catch(() => undefined);
  if (!answer?.ok) throw new Error(advice(url.protocol, answer?.status));
  return answer;
}

export const json = async (url) => (await open(url)).json();

async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes.buffer; // a server that unpacks by itself
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/**
 * The contents of files, [{url, bytes}], as ArrayBuffers in that order. `report(loaded, total)` is called as bytes
 * come in. A file that a server unpacks on its way counts for its `bytes` at most.
 */
export async function download(files, report = () => {}) {
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  const loaded = files.map(() => 0);
  const one = async ({ url, bytes }, i) => {
    const parts = [];
    const reader = (await open(url)).body.getReader();
    for (let part = await reader.read().catch(lost); !part.done; part = await reader.read().catch(lost)) {
      parts.push(part.value);
      loaded[i] = Math.min(bytes, loaded[i] + part.value.length);
      report(loaded.reduce((a, b) => a + b), total);
    }
    return unpacked(new Uint8Array(await new Blob(parts).arrayBuffer()));
  };
  return Promise.all(files.map(one));
}

function lost() {
  throw new Error(advice("http:"));
}
