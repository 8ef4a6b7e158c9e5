import assert from "node:assert/strict";
import test from "node:test";
import { gzipSync } from "node:zlib";
import { gumbel, normal, uniform } from "../../book/js/chance.js";
import { bounce, dab, render, shrink, squaredError } from "../../book/js/digits.js";
import { fromHash, sane, toHash } from "../../book/js/elements.js";
import { imagine } from "../../book/js/futures.js";
import { compress, palette } from "../../book/js/gif.js";
import { actionOf, Held } from "../../book/js/keys.js";
import { advice, download, progressText, tooOld } from "../../book/js/load.js";
import { most, shares, slots, squeeze } from "../../book/js/maps.js";
import { caption, colours, enlargement } from "../../book/js/player.js";

// Chance

test("draws are standard normal, and a seed repeats them", () => {
  const [draw, again] = [normal(3), normal(3)];
  const values = Array.from({ length: 20000 }, draw);
  assert.deepEqual(values.slice(0, 5), Array.from({ length: 5 }, again));
  const mean = values.reduce((a, b) => a + b) / values.length;
  const square = values.reduce((a, b) => a + b * b, 0) / values.length;
  assert.ok(Math.abs(mean) < 0.03 && Math.abs(square - 1) < 0.05, `${mean}, ${square}`);
  const draws = Array.from({ length: 1000 }, uniform(0));
  assert.ok(draws.every((v) => v >= 0 && v < 1));
});

// Files

test("progress is in megabytes, and says when there is nothing left to load", () => {
  assert.equal(progressText(7_340_000, 24_080_000), "Loading the model, 7.3 of 24.1 MB");
  assert.match(progressText(5, 5), /^Starting/);
});

test("each failure says what to do", () => {
  assert.match(advice("file:"), /make serve/);
  assert.match(advice("http:", 404), /make book/);
  assert.match(advice("https:", 503), /503/);
  assert.match(advice("https:"), /connection/);
});

test("files come unpacked and in order, and progress ends at their sum", async (context) => {
  const sent = { a: gzipSync("first"), b: Buffer.from("second") }; // b was unpacked on its way
  context.mock.method(globalThis, "fetch", async (url) => new Response(sent[url.pathname.slice(1)]));
  const seen = [], file = (name) => ({ url: new URL(`http://x/${name}`), bytes: sent[name].length });
  const got = await download([file("a"), file("b")], (loaded, total) => seen.push([loaded, total]));
  assert.deepEqual(got.map((buffer) => Buffer.from(buffer).toString()), ["first", "second"]);
  const total = sent.a.length + sent.b.length;
  assert.deepEqual(seen.at(-1), [total, total]);
});

test("a file that is missing, and a connection that breaks, are told apart", async (context) => {
  const file = [{ url: new URL("http://x/a"), bytes: 3 }];
  const mock = context.mock.method(globalThis, "fetch", async () => new Response("", { status: 404 }));
  await assert.rejects(download(file), /make book/);
  mock.mock.mockImplementation(async () => { throw new TypeError("Failed to fetch"); });
  await assert.rejects(download(file), /connection/);
  const broken = new ReadableStream({ pull: (stream) => stream.error(new TypeError("network error")) });
  mock.mock.mockImplementation(async () => new Response(broken));
  await assert.rejects(download(file), /connection/);
});

// Digits

test("a path bounces off all four walls, and stays a step long", () => {
  const [path] = [bounce([[0.95, 0.05]], [135], 4).map(([place]) => place)]; // down and to the left
  const step = 0.1 * Math.SQRT1_2;
  assert.deepEqual(path[1], [1, 0]); // both walls
  assert.ok(Math.abs(path[2][0] - (1 - step)) < 1e-12 && Math.abs(path[2][1] - step) < 1e-12);
});

test("frames hold the brightest of overlapping digits, rounded down to pixels", () => {
  const [dim, bright] = [new Uint8Array(784).fill(100), new Uint8Array(784).fill(200)];
  const [frame] = render([dim, bright], [[[0, 0], [0.51, 0]]], 64); // 0.51 * 36 = 18.36
  assert.deepEqual([frame[17 * 64], frame[18 * 64], frame[27 * 64], frame[45 * 64], frame[46 * 64]], [100, 200, 200, 200, 0]);
});

test("half the size averages four pixels", () => {
  const picture = new Uint8Array(784);
  picture.set([255, 255], 0);
  assert.equal(shrink(picture, 14)[0], 128);
  assert.throws(() => shrink(picture, 20), /divide 28/);
});

test("the error is summed over pixels, in units of [0, 1]", () => assert.equal(squaredError([255, 0, 51], [0, 0, 0]), 1.04));

test("a pen leaves a spot where it is, and none at the edge's other side", () => {
  const pad = new Uint8Array(784);
  dab(pad, 0.5, 14.5);
  assert.equal(pad[14 * 28], 255);
  assert.equal(pad[14 * 28 + 27] + pad[13 * 28 + 27], 0);
});

// Player

test("pixels are enlarged by whole numbers that fit", () => {
  for (const width of [200, 358, 390, 620, 800]) {
    for (const columns of [1, 2, 4]) {
      const times = enlargement(width, 64, columns);
      assert.ok(Number.isInteger(times) && times >= 1);
      if (times > 1) assert.ok(columns * (64 * times + 6) + 8 * (columns - 1) <= width);
    }
  }
});

test("grey, colour, and a ghost", () => {
  assert.deepEqual([...colours([9], [1, 1, 1])], [9, 9, 9, 255]);
  assert.deepEqual([...colours([1, 2, 3], [3, 1, 1])], [1, 2, 3, 255]);
  assert.deepEqual([...colours([0], [1, 1, 1], [255])], [128, 64, 11, 255]);
});

test("panels say what is prompt, what goes on, and where the truth ends", () => {
  const [future, truth] = [{ label: "future 1" }, { label: "truth", known: true }];
  assert.equal(caption(future, 3, 15, 20), "future 1 · prompt");
  assert.equal(caption(future, 16, 15, 20), "future 1");
  assert.equal(caption(future, 20, 15, 20), "future 1 …");
  assert.equal(caption(truth, 20, 15, 20), "truth (ends)");
});

// Links

test("a link keeps the choices, and nonsense in it becomes what is usual", () => {
  const usual = { clip: 4, seed: 0 }, limits = { clip: { min: 1, max: 8 } };
  const link = toHash("generate", { clip: 2, seed: 17 });
  assert.deepEqual(sane(fromHash(link, "generate"), usual, limits), { clip: 2, seed: 17 });
  assert.deepEqual(sane(fromHash("#generate?clip=99&seed=x", "generate"), usual, limits), usual);
  assert.equal(fromHash("#some-heading", "generate"), undefined);
});

// Futures

function told() {
  const calls = [], model = {};
  for (const name of ["begin", "read", "fork", "forget", "step"]) model[name] = async (...given) => (calls.push([name, ...given]), Uint8Array.of(calls.length));
  return { calls, model, names: () => calls.map(([name]) => name).join(" ") };
}

test("a prompt is read once, and futures come one after the other, each with a seed of its own", async () => {
  const { calls, model, names } = told();
  const got = [];
  for await (const { future } of imagine(model, { prompt: [1, 2], futures: 2, frames: 2, temperature: 1, seed: 5 }, () => true)) got.push(future);
  assert.deepEqual(got, [0, 0, 1, 1]);
  assert.equal(names(), "begin read read fork step step fork step step forget forget forget");
  const seeds = calls.filter(([name]) => name === "fork").map(([, , , seed]) => seed);
  assert.equal(new Set([5, ...seeds]).size, 3);
});

test("cancelled, it asks for no more and forgets its futures", async () => {
  const { model, names } = told();
  let going = true;
  for await (const _ of imagine(model, { prompt: [1], futures: 3, frames: 9, temperature: 1, seed: 0 }, () => going)) going = false;
  assert.equal(names(), "begin read fork step forget forget forget forget");
});

test("one future alone is the one it was among others, and only its own frames are painted", async () => {
  const { model, calls } = told();
  const got = [];
  const asked = { prompt: [1], futures: 3, frames: 2, temperature: 1, seed: 5, only: 1, paint: [{ t: 1, cell: 4, code: [2] }] };
  for await (const { future, t } of imagine(model, asked, () => true)) got.push([future, t]);
  assert.deepEqual(got, [[1, 0], [1, 1]]);
  const forks = calls.filter(([name]) => name === "fork");
  assert.deepEqual(forks.map(([, , as, seed]) => [as, seed]), [["run-1", 5 + 2 * 7919]]);
  assert.deepEqual(calls.filter(([name]) => name === "step").map(([, , , , paint]) => paint.length), [0, 1]);
});

// Where attention looked

test("a pixel's shares are those of one head, or the mean of all", () => {
  const maps = squeeze([0.25, 0.75, 0.5, 0.5, 1, 0, 0.09, 0.91]); // one layer, two heads, two pixels, two targets
  const near = (got, wanted) => got.every((share, i) => Math.abs(share - wanted[i]) < 0.005);
  const of = (head, pixel) => [...shares(maps, [1, 2, 2, 2], 0, head, pixel)];
  assert.ok(near(of(0, 0), [0.25, 0.75]) && near(of(1, 1), [0.09, 0.91]));
  assert.ok(near(of(undefined, 0), [0.625, 0.375]), of(undefined, 0));
  assert.equal(most(of(undefined, 1)), 1);
});

test("a cache's slots are frames by number; the start token is the first, and stays", () => {
  assert.deepEqual(slots(4, 0), [undefined, undefined, undefined, -1]);
  assert.deepEqual(slots(4, 2), [undefined, -1, 0, 1]);
  assert.deepEqual(slots(4, 3), [-1, 0, 1, 2]);
  assert.deepEqual(slots(4, 7), [-1, 4, 5, 6]);
});

// Pong

test("the newest key that is held counts; a tap between two frames counts once", () => {
  const held = new Held();
  assert.equal(held.take(), 0);
  held.press("w", 1);
  held.press("arrowdown", 2);
  held.press("arrowdown", 2); // a keyboard repeats
  assert.deepEqual([held.take(), held.take()], [2, 2]);
  held.release("arrowdown");
  assert.equal(held.take(), 1);
  held.release("w");
  held.press(7, 2); // a finger
  held.release(7);
  assert.deepEqual([held.take(), held.take()], [2, 0]);
  held.press("w", 1);
  held.clear(); // the focus went elsewhere
  assert.equal(held.take(), 0);
});

test("arrows, W and S move; shortcuts and other keys do not", () => {
  const of = (key, more = {}) => actionOf({ key, ...more });
  assert.deepEqual(["ArrowUp", "w", "W", "ArrowDown", "s", "S"].map((key) => of(key)), [1, 1, 1, 2, 2, 2]);
  assert.deepEqual([of("ArrowLeft"), of(" "), of("s", { ctrlKey: true }), of("w", { metaKey: true })], Array(4).fill(undefined));
});

test("gumbel noise is finite and picks as softmax would", () => {
  const draw = gumbel(1), chosen = [0, 0];
  for (let i = 0; i < 20000; i++) chosen[Math.log(3) + draw() > draw() ? 1 : 0] += 1;
  assert.ok(Math.abs(chosen[1] / 20000 - 0.75) < 0.01, `${chosen}`);
});

test("a browser without SIMD in WebAssembly, or one that cannot unpack, is too old", () => {
  assert.equal(tooOld(), undefined); // node has both
  assert.match(tooOld({}), /cannot run/);
  assert.match(tooOld({ WebAssembly: { validate: () => false }, DecompressionStream }), /SIMD/);
  assert.match(tooOld({ WebAssembly }), /cannot run/);
});

/** What GIF's compression holds, read by its definition. */
function unpack(blocks) {
  const bytes = [];
  for (let at = 0; blocks[at]; at += blocks[at] + 1) bytes.push(...blocks.slice(at + 1, at + 1 + blocks[at]));
  const found = [];
  let table, width, before, at = 0;
  for (;;) {
    let code = 0;
    for (let i = 0; i < (width ?? 9); i++, at++) code |= ((bytes[at >> 3] >> (at & 7)) & 1) << i;
    if (code === 257) return found;
    if (code === 256) {
      table = Array.from({ length: 258 }, (_, i) => [i]);
      [width, before] = [9, undefined];
      continue;
    }
    const now = table[code] ?? [...before, before[0]];
    found.push(...now);
    if (before && table.length < 4096) table.push([...before, now[0]]);
    if (table.length === 1 << width && width < 12) width += 1;
    before = now;
  }
}

test("a GIF's compression keeps every byte, past the point where its table is full", () => {
  const draw = uniform(2), noise = Uint8Array.from({ length: 20000 }, () => 256 * draw());
  for (const pixels of [Uint8Array.of(3), new Uint8Array(70000), noise]) assert.deepEqual(unpack(compress(pixels)), [...pixels]);
  assert.ok(compress(new Uint8Array(70000)).length < 1000);
});

test("a palette holds the commonest colours, and every colour's nearest", () => {
  const [red, blue] = [[200, 16, 16], [16, 16, 200]], frame = Uint8Array.from([0, 1, 2].flatMap((c) => [red[c], red[c], blue[c]]));
  const { colours, index, cells } = palette([frame], 3);
  assert.deepEqual(colours, [red, blue]);
  assert.deepEqual([...cells[0]].map((cell) => index[cell]), [0, 0, 1]);
  const many = new Uint8Array(3 * 400).map((_, i) => 16 * (i < 400 ? i % 16 : i < 800 ? Math.floor(i / 16) % 16 : 3));
  const large = palette([many], 400);
  assert.ok(large.colours.length <= 256 && [...large.cells[0]].every((cell) => large.index[cell] >= 0));
});
