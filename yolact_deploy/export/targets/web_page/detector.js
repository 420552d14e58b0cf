"use strict";
// From the pixels of a picture to detections with masks. Runs in a worker; page.js sends it messages.
// The rules are those of the Python package: preprocess.py (resize), priors.py (placement), paste.py (masks).
// Legend: h x w the network's input, H x W the picture, n detections. Boxes are x1, y1, x2, y2.

// Where a picture lies on the canvas that is stretched to the network's input, in pixels of the picture.
function place(height, width, network) {
  if (network.fit === "stretch") return { height, width, canvasHeight: height, canvasWidth: width, top: 0, left: 0 };
  const [rows, columns] = network.shape;
  const canvasHeight = Math.max(height, Math.floor((width * rows + Math.floor(columns / 2)) / columns));
  const canvasWidth = Math.max(width, Math.floor((height * columns + Math.floor(rows / 2)) / rows));
  const centered = network.fit === "letterbox";
  const top = centered ? Math.floor((canvasHeight - height) / 2) : 0;
  const left = centered ? Math.floor((canvasWidth - width) / 2) : 0;
  return { height, width, canvasHeight, canvasWidth, top, left };
}

// The two pixels of the picture between which each pixel of the input lies (-1: padding), and the share of the second.
function taps(target, canvas, first, length) {
  const near = new Int32Array(target), far = new Int32Array(target), share = new Float32Array(target);
  const inside = at => { const p = Math.min(Math.max(at, 0), canvas - 1) - first; return p >= 0 && p < length ? p : -1; };
  for (let i = 0; i < target; i++) {
    const position = Math.fround((i + 0.5) * canvas / target - 0.5), floor = Math.floor(position);
    [near[i], far[i], share[i]] = [inside(floor), inside(floor + 1), position - floor];
  }
  return { near, far, share };
}

// Shares as OpenCV has them for bytes: in 1/2048.
const whole = share => Int32Array.from(share, value => Math.round(value * 2048));

// One row of the picture at the width of the input, BGR; in 1/2048 for bytes.
function stretch(rgba, row, where, across, weights, padding, out) {
  const start = 4 * row * where.width, columns = across.near.length, one = weights instanceof Int32Array ? 2048 : 1;
  for (let x = 0, at = 0; x < columns; x++) {
    const left = row < 0 ? -1 : across.near[x], right = row < 0 ? -1 : across.far[x], u = weights[x];
    for (let channel = 0; channel < 3; channel++) {
      const a = left < 0 ? padding[channel] : rgba[start + 4 * left + 2 - channel];
      const b = right < 0 ? padding[channel] : rgba[start + 4 * right + 2 - channel];
      out[at++] = a * (one - u) + b * u;
    }
  }
  return out;
}

// BGR values [h, w, 3] of the network's input from RGBA pixels [H, W, 4]: bilinear, without antialiasing. Bytes are
// rounded as OpenCV does it, because a weak detection's score may move by a hundredth with the last bit of the pixels.
function resize(rgba, where, network) {
  const [rows, columns] = network.shape, bytes = network.dtype === "uint8";
  const down = taps(rows, where.canvasHeight, where.top, where.height);
  const across = taps(columns, where.canvasWidth, where.left, where.width);
  const out = bytes ? new Uint8Array(rows * columns * 3) : new Float32Array(rows * columns * 3);
  const Row = bytes ? Int32Array : Float32Array, length = 3 * columns;
  const [u, v] = bytes ? [whole(across.share), whole(down.share)] : [across.share, down.share];
  let [upper, lower] = [new Row(length), new Row(length)], [upperRow, lowerRow] = [null, null];
  for (let y = 0, at = 0; y < rows; y++) {
    if (down.near[y] === lowerRow) [upper, lower, upperRow, lowerRow] = [lower, upper, lowerRow, upperRow];
    if (down.near[y] !== upperRow) stretch(rgba, upperRow = down.near[y], where, across, u, network.padding, upper);
    if (down.far[y] !== lowerRow) stretch(rgba, lowerRow = down.far[y], where, across, u, network.padding, lower);
    const weight = v[y];
    if (bytes) {
      for (let i = 0; i < length; i++) {
        out[at++] = (((2048 - weight) * (upper[i] >> 4) >> 16) + (weight * (lower[i] >> 4) >> 16) + 2) >> 2;
      }
    } else {
      for (let i = 0; i < length; i++) out[at++] = upper[i] * (1 - weight) + lower[i] * weight;
    }
  }
  return out;
}

// A number from the bits of a float16. Probabilities are neither negative nor infinite.
function half(bits) {
  const exponent = bits >> 10, fraction = bits & 1023;
  return exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
}

// Part of a tensor's data as float32; runtimes without Float16Array give float16 as its bits.
function floats(data, start, length) {
  const part = data.subarray(start, start + length);
  return data instanceof Uint16Array ? Float32Array.from(part, half) : Float32Array.from(part);
}

// The cell between prototype pixels in which each pixel of the picture lies, and its place in there.
function axis(source, target, canvas, first) {
  const cell = new Int32Array(target), weight = new Float32Array(target);
  const scale = Math.fround(source / canvas), round = Math.fround;
  for (let i = 0; i < target; i++) {
    const position = Math.max(round(round(round(first + i + 0.5) * scale) - 0.5), 0);
    cell[i] = Math.min(Math.trunc(position), source - 1);
    weight[i] = position - cell[i];
  }
  return { cell, weight };
}

// First of the rising numbers that is at least `least`.
function lowerBound(numbers, least) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < least) low = middle + 1; else high = middle;
  }
  return low;
}

// The rows and columns of a mask [h, w] with a value above the threshold; null if there are none.
function extent(mask, rows, columns) {
  let [x1, y1, x2, y2] = [columns, rows, -1, -1];
  for (let y = 0, i = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, i++) {
      if (!(mask[i] > 0.5)) continue;
      if (x < x1) x1 = x;
      if (x > x2) x2 = x;
      if (y < y1) y1 = y;
      y2 = y;
    }
  }
  return x2 < 0 ? null : { x1, y1, x2, y2 };
}

// A binary mask at picture size from probabilities [h, w] that are cropped to their box: bilinear, then > 0.5.
// Only the part of the picture in which it can have pixels: {x, y, width, height, data, area}.
function paste(mask, rows, columns, down, across) {
  const inside = extent(mask, rows, columns);
  if (!inside) return { x: 0, y: 0, width: 0, height: 0, data: new Uint8Array(0), area: 0 };
  const x = lowerBound(across.cell, inside.x1 - 1), y = lowerBound(down.cell, inside.y1 - 1);
  const width = lowerBound(across.cell, inside.x2 + 1) - x, height = lowerBound(down.cell, inside.y2 + 1) - y;
  const data = new Uint8Array(width * height);
  let area = 0;
  for (let j = 0, at = 0; j < height; j++) {
    const row = down.cell[y + j], upper = row * columns, lower = Math.min(row + 1, rows - 1) * columns;
    const v = down.weight[y + j];
    for (let i = 0; i < width; i++, at++) {
      const left = across.cell[x + i], right = Math.min(left + 1, columns - 1), u = across.weight[x + i];
      const above = mask[upper + left] * (1 - u) + mask[upper + right] * u;
      const below = mask[lower + left] * (1 - u) + mask[lower + right] * u;
      if (above * (1 - v) + below * v > 0.5) { data[at] = 1; area++; }
    }
  }
  return { x, y, width, height, data, area };
}

// A box normalized to the input as pixels of the picture, corners sorted and clamped.
function toPicture(box, where) {
  const x = [box[0], box[2]].map(value => value * where.canvasWidth - where.left).sort((a, b) => a - b);
  const y = [box[1], box[3]].map(value => value * where.canvasHeight - where.top).sort((a, b) => a - b);
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return [clamp(x[0], where.width), clamp(y[0], where.height), clamp(x[1], where.width), clamp(y[1], where.height)];
}

// The detections above a score, best first, from the outputs of the network for one picture.
function decode(outputs, where, threshold) {
  const count = Number(outputs.num_detections.data[0]), [, , rows, columns] = outputs.masks.dims;
  const down = axis(rows, where.height, where.canvasHeight, where.top);
  const across = axis(columns, where.width, where.canvasWidth, where.left);
  const detections = [];
  for (let i = 0; i < count; i++) {
    const score = outputs.scores.data[i];
    if (!(score > threshold)) continue;
    const mask = floats(outputs.masks.data, i * rows * columns, rows * columns);
    const box = toPicture(outputs.boxes.data.subarray(4 * i, 4 * i + 4), where);
    detections.push({ label: Number(outputs.labels.data[i]), score, box, mask: paste(mask, rows, columns, down, across) });
  }
  return detections;
}

// Pixels that two masks share, by all that either has.
function maskIou(a, b) {
  const [left, right] = [Math.max(a.x, b.x), Math.min(a.x + a.width, b.x + b.width)];
  const [top, bottom] = [Math.max(a.y, b.y), Math.min(a.y + a.height, b.y + b.height)];
  let both = 0;
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      both += a.data[(y - a.y) * a.width + x - a.x] & b.data[(y - b.y) * b.width + x - b.x];
    }
  }
  return a.area + b.area ? both / (a.area + b.area - both) : 1;
}

// Why detections differ from the expected ones, or "" if they do not. Those near the threshold may come and go.
function difference(expected, actual, threshold) {
  const { score: slack, iou } = { score: 0.02, iou: 0.95 };
  for (const [one, others, what] of [
    ...expected.map(one => [one, actual, "is missing"]), ...actual.map(one => [one, expected, "is extra"]),
  ]) {
    if (one.score <= threshold + slack) continue;
    const alike = others.filter(other => other.label === one.label && Math.abs(other.score - one.score) <= slack);
    const best = Math.max(0, ...alike.map(other => maskIou(one.mask, other.mask)));
    if (!alike.length) return `a detection with score ${one.score.toFixed(2)} ${what}`;
    if (best < iou) return `masks differ: IoU ${best.toFixed(2)}, at least ${iou} expected`;
  }
  return "";
}

// What follows knows ONNX Runtime Web and talks to the page.

let ort = null, network = null, session = null, reference = null, last = null;

// Loads the runtime and the model. With WebGPU, a second session on the CPU is there to be compared with.
async function load({ runtime, wasm, model, info, provider, threads }) {
  network = info;
  ort = await import(URL.createObjectURL(new Blob([runtime], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";  // which nodes run on the CPU is no news for a user
  const bytes = new Uint8Array(model), create = name => ort.InferenceSession.create(bytes, { executionProviders: [name] });
  reference = provider === "webgpu" ? await create("wasm") : null;
  session = await create(provider);
}

async function run(which, pixels, width, height) {
  const start = performance.now(), where = place(height, width, network), [rows, columns] = network.shape;
  const data = resize(new Uint8ClampedArray(pixels), where, network), resized = performance.now();
  const outputs = await which.run({ images: new ort.Tensor(network.dtype, data, [1, rows, columns, 3]) });
  const milliseconds = { resize: resized - start, network: performance.now() - resized };
  return { outputs, where, milliseconds };
}

function answer({ outputs, where, milliseconds }, threshold) {
  const start = performance.now(), detections = decode(outputs, where, threshold);
  return { detections, milliseconds: { ...milliseconds, masks: performance.now() - start } };
}

const actions = {
  load,
  async detect({ pixels, width, height, threshold }) {
    last = await run(session, pixels, width, height);
    return answer(last, threshold);
  },
  // The same picture with another threshold.
  async select({ threshold }) {
    return answer(last, threshold);
  },
  // One picture on the CPU and on the GPU: why they differ ("" if they do not), and the time of a second run.
  async check({ pixels, width, height, threshold }) {
    const expected = answer(await run(reference, pixels, width, height), threshold).detections;
    const actual = answer(await run(session, pixels, width, height), threshold).detections;
    const reason = difference(expected, actual, threshold);
    const again = reason ? null : (await run(session, pixels, width, height)).milliseconds.network;
    if (!reason) await reference.release();
    return { reason, count: expected.length, milliseconds: again };
  },
};

if (typeof WorkerGlobalScope !== "undefined") {
  self.onmessage = async ({ data: { id, action, values } }) => {
    try {
      self.postMessage({ id, result: await actions[action](values) });
    } catch (error) {
      self.postMessage({ id, error: String(error && error.message || error) });
    }
  };
}
