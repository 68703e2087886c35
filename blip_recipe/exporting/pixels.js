// Pixels as BLIP's image processor makes them: torchvision's resizing in whole numbers, then normalisation in float32.
const linear = (distance) => Math.max(1 - distance, 0);

function cubic(distance) {  // Keys' cubic convolution with a = -0.5
  if (distance < 1) return (1.5 * distance - 2.5) * distance * distance + 1;
  return distance < 2 ? ((-0.5 * distance + 2.5) * distance - 4) * distance + 2 : 0;
}

const FILTERS = { 2: [linear, 1], 3: [cubic, 2] };  // by Pillow's numbers
const WEIGHT_BITS = 15, MOST_BITS = 22;

// For each of `size` new values, the place of its first old one and the weights of this and the next ones.
function integerWeights(old, size, resample) {
  const [filter, reach] = FILTERS[resample];
  const scale = old / size, widened = Math.max(scale, 1), support = reach * widened;
  let largest = 0, bits = 0;
  const rows = Array.from({ length: size }, (_, place) => {
    const centre = scale * (place + 0.5);
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), old);
    const raw = Array.from({ length: end - first }, (_, k) => filter(Math.abs((k + first - centre + 0.5) / widened)));
    const sum = raw.reduce((a, b) => a + b, 0);
    const weights = raw.map((weight) => weight / sum);
    for (const weight of weights) largest = Math.max(largest, weight);
    return { first, weights };
  });
  while (bits < MOST_BITS && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** WEIGHT_BITS) bits += 1;
  for (const row of rows) row.weights = row.weights.map((w) => Math.trunc(w * 2 ** bits + Math.sign(w) / 2));
  return { bits, rows };
}

// Resize one axis of 8-bit values, which lie `step` apart, for each of `starts`.
function resizeAxis(values, target, starts, targets, step, targetStep, weights) {
  const half = 2 ** (weights.bits - 1), whole = 2 ** weights.bits;
  for (let line = 0; line < starts.length; line += 1) {
    weights.rows.forEach(({ first, weights: own }, place) => {
      let sum = half, at = starts[line] + first * step;
      for (const weight of own) {
        sum += weight * values[at];
        at += step;
      }
      target[targets[line] + place * targetStep] = Math.floor(sum / whole);  // the array clamps to 0..255
    });
  }
}

// Resize RGBA values `{ width, height, data }` to planes of red, green and blue, of `width` x `height`.
function resize(picture, width, height, resample) {
  const wide = new Uint8ClampedArray(3 * picture.height * width), planes = new Uint8ClampedArray(3 * height * width);
  const lines = (count, place) => Array.from({ length: 3 * count }, (_, n) => place(Math.trunc(n / count), n % count));
  resizeAxis(
    picture.data, wide,
    lines(picture.height, (channel, row) => row * picture.width * 4 + channel),
    lines(picture.height, (channel, row) => (channel * picture.height + row) * width),
    4, 1, integerWeights(picture.width, width, resample),
  );
  resizeAxis(
    wide, planes,
    lines(width, (channel, column) => channel * picture.height * width + column),
    lines(width, (channel, column) => channel * height * width + column),
    width, width, integerWeights(picture.height, height, resample),
  );
  return planes;
}

// The values `(3, height, width)` of the model's input.
function makePixels(picture, { width, height, resample, mean, std }) {
  const planes = resize(picture, width, height, resample), size = width * height, { fround } = Math;
  const range = (values) => values.map((value) => fround(fround(value) * 255));
  const means = range(mean), stds = range(std);
  return Float32Array.from(planes, (value, place) => {
    const channel = Math.trunc(place / size);
    return fround(fround(value - means[channel]) / stds[channel]);
  });
}
