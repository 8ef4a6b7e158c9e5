import assert from "node:assert/strict";
import test from "node:test";
import { World } from "../../book/js/world.js";

const ABOUT = { shape: [1, 2, 2], latent: [1, 1, 1, 1], cache: [1], noise: [1, 2], inputs: {} };
const tensor = (type, data, shape) => ({ type, data, shape });

/** A model that counts: its cache holds the sum of all that it was shown, each frame shows that sum and the noise. */
function counting(about = ABOUT) {
  const asked = [];
  const run = async (graph, feeds) => {
    asked.push([graph, feeds]);
    if (graph === "encode") return { latent: tensor("float32", Float32Array.of(feeds.frame.data[0]), about.latent) };
    if (graph === "decode") return { frame: tensor("float32", new Float32Array(4).fill(feeds.latent.data[0]), [1, 1, 2, 2]) };
    const given = feeds.target.data[0], sum = feeds.cache.data[0] + (Number.isNaN(given) ? 0.1 : given);
    const next = tensor("float32", Float32Array.of(sum), about.latent);
    return { next, shown: next, after: tensor("float32", Float32Array.of(sum), about.cache) };
  };
  return { world: new World(about, run, tensor), steps: () => asked.filter(([graph]) => graph === "step").map(([, feeds]) => feeds) };
}

const grey = (value) => new Uint8Array(4).fill(value);

test("a prompt is read frame by frame: first nothing before it, then the frame before; targets are known", async () => {
  const { world, steps } = counting();
  world.begin("a");
  await world.read("a", grey(51));
  await world.read("a", grey(102));
  const [first, second] = steps();
  assert.ok(Number.isNaN(first.latent.data[0]));
  assert.deepEqual([first, second].map((s) => s.target.data[0]), [Math.fround(0.2), Math.fround(0.4)]);
  assert.equal(second.latent.data[0], Math.fround(0.2));
  assert.deepEqual([first, second].map((s) => s.frames.data[0]), [0n, 1n]);
});

test("a step is given no target, and takes the frame before it; its frame comes in bytes", async () => {
  const { world, steps } = counting();
  world.begin("a");
  await world.read("a", grey(102));
  assert.deepEqual(await world.step("a"), grey(128)); // 0.4 + 0.1 of 255
  await world.step("a");
  const [, one, two] = steps();
  assert.ok(Number.isNaN(one.target.data[0]) && Number.isNaN(two.target.data[0]));
  assert.equal(one.latent.data[0], Math.fround(0.4));
  assert.equal(two.latent.data[0], Math.fround(0.5));
});

test("futures fork from one prompt, and neither sees the other", async () => {
  const { world } = counting();
  world.begin("prompt");
  await world.read("prompt", grey(51));
  world.fork("prompt", "a", 1);
  world.fork("prompt", "b", 2);
  await world.step("a");
  await world.step("a");
  assert.deepEqual(await world.step("b"), grey(77)); // 0.2 + 0.1, as if "a" had never been
  world.forget("a");
  await assert.rejects(world.step("a"), /No future is called a/);
});

test("a painted codeword is shown, and taken for granted from there on; others keep theirs", async () => {
  const { world, steps } = counting({ ...ABOUT, latent: [1, 1, 1, 1], inside: { spatial: [1, 1, 1, 1] } });
  world.run = ((run) => async (...given) => ({ ...(await run(...given)), spatial: { data: Float32Array.of(0.25) } }))(world.run);
  world.begin("prompt");
  await world.read("prompt", grey(51));
  world.fork("prompt", "a", 1);
  world.fork("prompt", "b", 1);
  assert.deepEqual(await world.step("a", {}, 0, [{ cell: 0, code: [0.8] }]), grey(204));
  assert.deepEqual(world.inside("a"), { latent: Float32Array.of(0.8), spatial: Uint8Array.of(128) }); // 255 times the root
  await world.step("a");
  assert.equal(steps().at(-1).latent.data[0], Math.fround(0.8));
  assert.deepEqual(await world.step("b"), grey(77));
  assert.deepEqual(await world.codewords(grey(102)), Float32Array.of(0.4));
});

test("the same seed gives the same noise, another one another", async () => {
  const { world, steps } = counting();
  for (const [name, seed] of [["a", 7], ["b", 7], ["c", 8]]) {
    world.begin(name, seed);
    await world.step(name);
  }
  const [a, b, c] = steps().map((s) => s.noise.data);
  assert.deepEqual(a, b);
  assert.notDeepEqual(a, c);
});

test("while it reads, temperature is at most 1; while it imagines, what was asked for", async () => {
  const { world, steps } = counting();
  world.begin("a");
  await world.read("a", grey(0), {}, 2);
  await world.step("a", {}, 2);
  assert.deepEqual(steps().map((s) => s.temperature.data[0]), [1, 2]);
});

test("a world with actions passes them by name, and says which one is missing", async () => {
  const { world, steps } = counting({ ...ABOUT, inputs: { action: { type: "int64", shape: [1] } } });
  world.begin("a");
  await world.step("a", { action: 2 });
  assert.deepEqual(steps()[0].action, tensor("int64", BigInt64Array.of(2n), [1]));
  await assert.rejects(world.step("a", { key: 2 }), /needs action, got key/);
});

test("a token head is given chance of a seed where it draws, and none where the frame is known or at temperature 0", async () => {
  const { world, steps } = counting({ ...ABOUT, gumbel: [1, 3, 1, 1] });
  for (const name of ["a", "b"]) {
    world.begin(name, 4);
    await world.read(name, grey(51), {}, 1);
    await world.step(name, {}, 1);
    await world.step(name, {}, 0);
  }
  const given = steps().map((step) => [...step.gumbel.data]);
  assert.deepEqual(given.slice(0, 3), given.slice(3));
  const [read, drawn, likeliest] = given;
  assert.deepEqual([read, likeliest], [[0, 0, 0], [0, 0, 0]]);
  assert.equal(new Set(drawn).size, 3);
  const other = counting();
  other.world.begin("a");
  await other.world.step("a", {}, 1);
  assert.ok(!("gumbel" in other.steps()[0])); // no token head
});
