// Moving digits as chapter 02 makes them: straight paths that bounce, the brightest pixel wins.

export const STEP = 0.1; // of its range a digit moves in a frame
export const SIDE = 28; // of a digit's picture

/** Paths of points, [row, column] in [0, 1], thrown at angles in degrees: 0 is to the right, 90 is down. */
export function bounce(starts, angles, frames) {
  const places = starts.map((start) => [...start]);
  const speeds = angles.map((a) => [STEP * Math.sin((a * Math.PI) / 180), STEP * Math.cos((a * Math.PI) / 180)]);
  const path = [places.map((place) => [...place])];
  for (let t = 1; t < frames; t++) {
    places.forEach((place, k) => {
      for (const axis of [0, 1]) {
        const next = place[axis] + speeds[k][axis];
        place[axis] = Math.min(1, Math.max(0, next));
        if (next <= 0) speeds[k][axis] = Math.abs(speeds[k][axis]);
        else if (next >= 1) speeds[k][axis] = -Math.abs(speeds[k][axis]);
      }
    });
    path.push(places.map((place) => [...place]));
  }
  return path;
}

/** A picture of 28 x 28 bytes, averaged down to `side` pixels where that divides 28. */
export function shrink(picture, side) {
  const edge = SIDE / side;
  if (edge === 1) return picture;
  if (!Number.isInteger(edge)) throw new Error(`side must divide ${SIDE}, got ${side}`);
  return Uint8Array.from({ length: side * side }, (_, i) => {
    const [row, column] = [Math.floor(i / side) * edge, (i % side) * edge];
    let sum = 0;
    for (let r = 0; r < edge; r++) for (let c = 0; c < edge; c++) sum += picture[(row + r) * SIDE + column + c];
    return Math.round(sum / edge ** 2);
  });
}

/** Frames of size x size bytes with the pictures (28 x 28 bytes) where the path says. */
export function render(pictures, path, size) {
  const side = Math.round((size * SIDE) / 64), reach = size - side;
  const small = pictures.map((picture) => shrink(picture, side));
  return path.map((places) => {
    const frame = new Uint8Array(size * size);
    places.forEach(([row, column], k) => {
      const [top, left] = [Math.floor(row * reach), Math.floor(column * reach)];
      for (let r = 0; r < side; r++) {
        for (let c = 0; c < side; c++) {
          const at = (top + r) * size + left + c;
          frame[at] = Math.max(frame[at], small[k][r * side + c]);
        }
      }
    });
    return frame;
  });
}

/** Squared difference of two frames of bytes, summed over the pixels, in units of [0, 1]: chapter 11's measure. */
export function squaredError(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] - b[i]) / 255) ** 2;
  return sum;
}

/** A soft dab of a pen at (x, y), in pixels, on a picture of 28 x 28 bytes. */
export function dab(picture, x, y) {
  for (let row = Math.max(0, Math.floor(y - 3)); row < Math.min(SIDE, y + 3); row++) {
    for (let column = Math.max(0, Math.floor(x - 3)); column < Math.min(SIDE, x + 3); column++) {
      const far = Math.hypot(column + 0.5 - x, row + 0.5 - y);
      const at = row * SIDE + column;
      picture[at] = Math.max(picture[at], Math.round(255 * Math.min(1, Math.max(0, 2.1 - far))));
    }
  }
}
