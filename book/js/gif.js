// An animated GIF of frames (3·H·W bytes each), enlarged by whole numbers; it repeats for ever.

const COLOURS = 256;

/** The mean colours of the commonest of 4096 cells, 256 at most, and each cell's index among them, -1: none. */
export function palette(frames, area) {
  const count = new Uint32Array(4096), sum = new Float64Array(3 * 4096), cells = frames.map((frame) => {
    const found = new Uint16Array(area);
    for (let i = 0; i < area; i++) {
      const rgb = [0, 1, 2].map((c) => frame[c * area + i]);
      const cell = (found[i] = rgb.reduce((all, v) => (all << 4) | (v >> 4), 0));
      count[cell] += 1;
      rgb.forEach((v, c) => (sum[3 * cell + c] += v));
    }
    return found;
  });
  const used = [...count.keys()].filter((cell) => count[cell]).sort((a, b) => count[b] - count[a]);
  const mean = (cell) => [0, 1, 2].map((c) => Math.round(sum[3 * cell + c] / count[cell]));
  const colours = used.slice(0, COLOURS).map(mean);
  const index = new Int16Array(4096).fill(-1);
  for (const [i, cell] of used.entries()) index[cell] = i < COLOURS ? i : nearest(colours, mean(cell));
  return { colours, index, cells };
}

function nearest(colours, rgb) {
  const far = colours.map((colour) => colour.reduce((all, v, c) => all + (v - rgb[c]) ** 2, 0));
  return far.indexOf(Math.min(...far));
}

/** GIF's compression (LZW) of bytes: codes of 9 to 12 bits, in blocks of up to 255 bytes. */
export function compress(pixels) {
  const packed = [], CLEAR = 256, END = 257;
  let known = new Map(), width = 9, buffer = 0, filled = 0, prefix = -1;
  const emit = (code) => {
    buffer |= code << filled;
    for (filled += width; filled >= 8; filled -= 8, buffer >>>= 8) packed.push(buffer & 255);
  };
  emit(CLEAR);
  for (const pixel of pixels) {
    const longer = (prefix << 8) | pixel;
    if (prefix < 0 || known.has(longer)) {
      prefix = prefix < 0 ? pixel : known.get(longer);
      continue;
    }
    emit(prefix);
    const next = END + 1 + known.size;
    if (next < 4096) {
      known.set(longer, next);
      if (next === 1 << width) width += 1;
    } else {
      emit(CLEAR);
      [known, width] = [new Map(), 9];
    }
    prefix = pixel;
  }
  emit(prefix);
  emit(END);
  if (filled) packed.push(buffer & 255);
  const blocks = [];
  for (let i = 0; i < packed.length; i += 255) blocks.push(Math.min(255, packed.length - i), ...packed.slice(i, i + 255));
  return [...blocks, 0];
}

export function gif(frames, [, H, W], { times = 3, milliseconds = 70 } = {}) {
  const { colours, index, cells } = palette(frames, H * W);
  const word = (v) => [v & 255, v >> 8], size = [...word(W * times), ...word(H * times)];
  const table = Uint8Array.from({ length: 3 * COLOURS }, (_, i) => colours[Math.floor(i / 3)]?.[i % 3] ?? 0);
  const forever = [0x21, 0xff, 11, ...new TextEncoder().encode("NETSCAPE2.0"), 3, 1, 0, 0, 0];
  const parts = [[...new TextEncoder().encode("GIF89a"), ...size, 0xf7, 0, 0], table, forever];
  for (const frame of cells) {
    const large = new Uint8Array(H * W * times ** 2);
    for (let i = 0; i < large.length; i++) {
      const row = Math.floor(i / (W * times) / times), column = Math.floor((i % (W * times)) / times);
      large[i] = index[frame[row * W + column]];
    }
    parts.push([0x21, 0xf9, 4, 0, ...word(Math.round(milliseconds / 10)), 0, 0, 0x2c, 0, 0, 0, 0, ...size, 0, 8], compress(large));
  }
  parts.push([0x3b]);
  return new Blob(parts.map((part) => Uint8Array.from(part)), { type: "image/gif" });
}
