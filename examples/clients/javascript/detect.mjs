// Run an exported model with ONNX Runtime in Node.js, without yolact-deploy. In a folder with this file:
//   npm install --ignore-scripts onnxruntime-node sharp
//   node detect.mjs yolact.onnx street.jpg
// Files exported with --input float32, --fit or --tail heads need more code.
import { readFileSync, realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";
import sharp from "sharp";

// The file's metadata: an ONNX file is a protobuf message, and its fields 14 are pairs of a key and a text.
export function metadata(file) {
  let at = 0;
  const number = (unit = 1) => { const byte = file[at++]; return (byte & 127) * unit + (byte < 128 ? 0 : number(unit * 128)); };
  const text = () => { const length = number(); return file.toString("utf8", at, at += length); };
  while (at < file.length) {
    const tag = number();
    if ((tag & 7) === 0) number();  // all others are bytes with their length in front
    else if (tag >> 3 !== 14) at = number() + at;
    else if ([number(), number(), text(), number()][2] === "yolact_deploy") return JSON.parse(text());
    else text();
  }
}
// Bilinear positions along one axis, in 1/2048 as OpenCV resizes bytes.
const taps = (to, from) => Array.from({ length: to }, (_, i) => {
  const at = Math.min(Math.max(Math.fround((i + 0.5) * from / to - 0.5), 0), from - 1), low = Math.floor(at);
  return [low, Math.min(low + 1, from - 1), at - low, Math.round((at - low) * 2048)];
});
// Detections of one RGB picture {data, width, height}: label, score, box in pixels, mask [height * width] of 0 and 1.
export async function detect(session, { data, width, height }, [rows, columns], threshold = 0.15) {
  const input = new Uint8Array(rows * columns * 3), across = taps(columns, width);
  taps(rows, height).forEach(([top, low, , v], y) => across.forEach(([left, right, , u], x) => [2, 1, 0].forEach((c, k) => {
    const row = at => data[3 * (at * width + left) + c] * (2048 - u) + data[3 * (at * width + right) + c] * u >> 4;
    input[3 * (y * columns + x) + k] = (((2048 - v) * row(top) >> 16) + (v * row(low) >> 16) + 2) >> 2;  // BGR
  })));
  const out = await session.run({ images: new ort.Tensor("uint8", input, [1, rows, columns, 3]) });
  const half = bits => bits >> 10 ? 2 ** ((bits >> 10) - 15) * (1 + (bits & 1023) / 1024) : 2 ** -24 * (bits & 1023);
  const [, , h, w] = out.masks.dims, [down, over] = [taps(height, h), taps(width, w)], detections = [];
  for (let i = 0; i < out.num_detections.data[0] && out.scores.data[i] > threshold; i++) {  // slots past it are empty
    const [x1, y1, x2, y2] = Array.from(out.boxes.data.slice(4 * i, 4 * i + 4), at => Math.min(Math.max(at, 0), 1));
    const box = [Math.min(x1, x2) * width, Math.min(y1, y2) * height, Math.max(x1, x2) * width, Math.max(y1, y2) * height];
    const part = out.masks.data.slice(i * h * w, (i + 1) * h * w), mask = new Uint8Array(width * height);
    const p = part instanceof Uint16Array ? Float32Array.from(part, half) : part;  // probabilities, cropped to the box
    down.forEach(([top, low, v], y) => over.forEach(([l, r, u], x) => {
      const value = row => p[row * w + l] * (1 - u) + p[row * w + r] * u;
      mask[y * width + x] = value(top) * (1 - v) + value(low) * v > 0.5;
    }));
    detections.push({ label: out.labels.data[i], score: out.scores.data[i], box, mask });
  }
  return detections;
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [model, picture] = process.argv.slice(2), { config } = metadata(readFileSync(model)), size = [config.image_size].flat();
  if ((config.fit ?? "stretch") !== "stretch") throw new Error(`${model} pads pictures (${config.fit}): this program does not`);
  const image = sharp(picture).rotate().toColourspace("srgb").removeAlpha().raw(), session = await ort.InferenceSession.create(model);
  const { data, info } = await image.toBuffer({ resolveWithObject: true });
  for (const { label, score, box, mask } of await detect(session, { data, ...info }, [size[0], size.at(-1)])) {
    console.log(`${config.class_names[label]} ${score.toFixed(2)} at ${box.map(Math.round)}, ${mask.filter(Boolean).length} mask pixels`);
  }
}
