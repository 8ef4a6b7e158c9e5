// Sheets of grey frames, which come as PNGs inside the script, so that a page from disk may read them.

/** The bytes of tiles of width x height, in rows, from an image's address. */
export async function tiles(source, width, height) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const found = [];
  for (let top = 0; top < image.height; top += height) {
    for (let left = 0; left < image.width; left += width) {
      const { data } = context.getImageData(left, top, width, height);
      found.push(Uint8Array.from({ length: width * height }, (_, i) => data[4 * i]));
    }
  }
  return found;
}
