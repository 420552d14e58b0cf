"use strict";
// The page: takes a picture, a clip or the camera, lets detector.js find the objects in a worker, and draws them.
// Nothing is sent anywhere. A page in one file has all other files in `embedded`, gzipped and in Base64.
const $ = id => document.getElementById(id);
const MOST_PIXELS = 40e6, CHECK_SCORE = 0.3;
const embedded = $("embedded") ? JSON.parse($("embedded").textContent) : null;

let config = null, engine = null, cpu = null, gpu = null;
let frame = null;  // the shown picture: {pixels, width, height}
let answer = null, current = 0, opened = 0, playing = false, pending = false;

function say(message, wrong = false) {
  $("status").textContent = message;
  $("status").className = wrong ? "wrong" : "";
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(1)} MB`;

// A file beside this page, or inside of it; `progress` receives the bytes so far.
async function bytesOf(name, progress = () => {}) {
  if (embedded) {
    const packed = Uint8Array.from(atob(embedded[name]), character => character.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded: the server answers ${response.status}`);
  const parts = [], reader = response.body.getReader();
  for (let count = 0, part; !(part = await reader.read()).done;) {
    parts.push(part.value);
    progress(count += part.value.length);
  }
  return new Blob(parts).arrayBuffer();
}

// A worker with a model in it; each call is answered in its order.
class Engine {
  static async open(provider, model, progress) {
    const made = new Engine(), files = config.runtime[provider];
    [made.provider, made.model, made.waiting, made.count] = [provider, model, new Map(), 0];
    made.threads = crossOriginIsolated ? Math.max(1, +new URLSearchParams(location.search).get("threads") || 1) : 1;
    const [code, runtime, wasm, bytes] = [
      await bytesOf("detector.js"), await bytesOf(files.script), await bytesOf(files.binary, progress),
      await bytesOf(model.file, progress),
    ];
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    made.worker = new Worker(address);
    made.worker.onmessage = ({ data }) => made.settle(data);
    made.worker.onerror = event => made.fail(event.message || "the worker ended");
    const values = { runtime, wasm, model: bytes, info: model, provider, threads: made.threads };
    try {
      await made.call("load", values, [runtime, wasm, bytes]);
    } catch (error) {
      made.close();
      throw error;
    }
    return made;
  }

  call(action, values, transfer = []) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.count, { resolve, reject });
      this.worker.postMessage({ id: this.count, action, values }, transfer);
    });
  }

  settle({ id, result, error }) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error === undefined) resolve(result); else reject(new Error(error));
  }

  fail(message) {
    for (const { reject } of this.waiting.values()) reject(new Error(message));
    this.waiting.clear();
  }

  close() {
    this.worker.terminate();
    this.fail("it was stopped");
  }

  get words() {
    const where = this.provider === "webgpu" ? "the GPU (WebGPU)" : `the CPU (WebAssembly, ${this.threads} thread${this.threads > 1 ? "s" : ""})`;
    return `Runs on ${where} in ${this.model.precision.toUpperCase()}.`;
  }
}

function describe(reason = "") {
  $("engine").textContent = `${engine ? engine.words : ""} ${reason}`.trim();
}

// Loads the chosen model for the CPU, which serves until the GPU has shown that it computes the same.
async function openModel() {
  const wanted = config.models[$("model").selectedIndex], number = ++opened;
  [cpu, gpu].forEach(one => one && one.close());
  [engine, cpu, gpu, answer] = [null, null, null, null];
  describe();
  say(`Loading ${wanted.file} ...`);
  const made = await Engine.open("wasm", wanted, count => say(`Loading ${wanted.file}: ${megabytes(count)}`));
  if (number !== opened) return made.close();  // another one was chosen meanwhile
  engine = cpu = made;
  gpuState = "";
  describe();
  say("");
  if (frame) await detect();
}

// --- The GPU: used only after it has found what the CPU finds ---

let gpuState = "";  // "", "checking" or "decided"

// The adapter and the file for it, or the reason why there is none.
async function gpuChoice(forced) {
  if (!config.runtime.webgpu) return { reason: "this page was made without the files for it" };
  if (!navigator.gpu) return { reason: "this browser has no WebGPU here" };
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return { reason: "this browser offers no GPU" };
  const software = adapter.isFallbackAdapter || (adapter.info && (adapter.info.isFallbackAdapter || adapter.info.architecture === "swiftshader"));
  if (software && !forced) return { reason: "the only GPU that this browser offers is emulated" };
  // Files in FP16 and INT8 compute in or give float16, which shaders support only with this feature.
  const half = adapter.features.has("shader-f16");
  const model = (half && config.models.find(one => one.precision === "fp16")) || config.models.find(one => one.precision === "fp32");
  if (model) return { model };
  return { reason: half ? "it needs the model in FP16 or FP32" : "this GPU has no float16, and there is no model in FP32 here" };
}

async function tryGpu() {
  const mode = $("compute").value;
  if (mode === "wasm" || gpuState || !answer || !answer.detections.length) return;
  gpuState = "checking";
  const asked = cpu, picture = { ...frame, pixels: frame.pixels.slice(0) };  // the next frame of a video takes its place
  const reason = await checkGpu(picture, mode === "webgpu").catch(error => `it failed: ${error.message}`);
  if (asked !== cpu || $("compute").value === "wasm") return;
  gpuState = "decided";
  if (!reason) engine = gpu;
  else if (gpu) { gpu.close(); gpu = null; }
  describe(reason ? `WebGPU is not used: ${reason}.` : "It found the same as the CPU on the first picture.");
}

async function checkGpu(picture, forced) {
  const speed = answer.milliseconds.network, { model, reason } = await gpuChoice(forced);
  if (!model) return reason;
  describe("Loading what WebGPU needs ...");
  gpu = await Engine.open("webgpu", model, count => describe(`Loading what WebGPU needs: ${megabytes(count)}`));
  describe("Comparing WebGPU with the CPU ...");
  const check = await gpu.call("check", { ...picture, threshold: CHECK_SCORE }, [picture.pixels]);
  if (check.reason) return `it does not find what the CPU finds (${check.reason})`;
  if (!check.count) { gpuState = ""; return "nothing was found by which it could be checked"; }
  if (check.milliseconds > speed && !forced) {
    return `it takes ${check.milliseconds.toFixed(0)} ms where the CPU takes ${speed.toFixed(0)}`;
  }
  return "";
}

// --- Detection ---

async function detect() {
  if (!engine || !frame || pending) return;
  pending = true;
  if (!playing) say("Detecting ...");
  const used = engine, shown = frame;
  try {
    const { width, height } = shown, pixels = shown.pixels.slice(0);
    const result = await used.call("detect", { pixels, width, height, threshold: threshold() }, [pixels]);
    pending = false;
    if (shown !== frame || used !== engine) return detect();  // another picture or model has come in between
    answer = { width, height, detections: result.detections.map(named), milliseconds: result.milliseconds };
    show();
    tryGpu();
  } catch (error) {
    pending = false;
    if (used !== engine) return detect();  // it was closed for another model
    frame = null;
    stop();
    say(`The picture was not processed: ${error.message}`, true);
  }
}

const threshold = () => +$("threshold").value;
const named = (one, i) => ({ ...one, name: config.classes[one.label], rgb: rgb(i) });

// The colors of yolact_deploy.draw: neighbors in the sequence are far apart.
function rgb(index) {
  const [saturation, value] = [[0.85, 1], [0.6, 1], [0.9, 0.8]][Math.floor(index / 8) % 3];
  const hue = ((0.58 + index * 0.618033988749895) % 1) * 6;
  return [5, 3, 1].map(n => {
    const k = (n + hue) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

// Small pictures are drawn enlarged, so that boxes and names are not.
const zoom = () => Math.max(1, Math.floor(960 / Math.max(answer.width, answer.height)));

function draw(highlight) {
  if (!answer || !frame) return;
  const { width, height, detections } = answer, canvas = $("canvas"), scale = zoom();
  const image = new ImageData(new Uint8ClampedArray(frame.pixels.slice(0)), width, height);
  for (let i = detections.length - 1; i >= 0; i--) {
    tint(image.data, width, detections[i], highlight === undefined ? 0.5 : highlight === i ? 0.75 : 0.15);
  }
  const tinted = new OffscreenCanvas(width, height);
  tinted.getContext("2d").putImageData(image, 0, 0);
  if (canvas.width !== width * scale) canvas.width = width * scale;
  if (canvas.height !== height * scale) canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.drawImage(tinted, 0, 0, canvas.width, canvas.height);
  if (!$("show-boxes").checked) return;
  for (let i = detections.length - 1; i >= 0; i--) drawBox(context, detections[i], scale);  // the best on top
}

function tint(data, stride, { mask, rgb }, strength) {
  for (let y = 0, at = 0; y < mask.height; y++) {
    for (let x = 0, to = 4 * ((mask.y + y) * stride + mask.x); x < mask.width; x++, at++, to += 4) {
      if (!mask.data[at]) continue;
      for (let channel = 0; channel < 3; channel++) data[to + channel] += (rgb[channel] - data[to + channel]) * strength;
    }
  }
}

function drawBox(context, { box, name, score, rgb: [r, g, b] }, scale) {
  const { width, height, clientWidth } = context.canvas, unit = width / (clientWidth || width);  // one pixel on the screen
  const [x1, y1, x2, y2] = box.map(value => value * scale), text = `${name} ${score.toFixed(2)}`;
  context.strokeStyle = context.fillStyle = `rgb(${r} ${g} ${b})`;
  context.lineWidth = 2 * unit;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.font = `${Math.round(13 * unit)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const wide = context.measureText(text).width + 8 * unit, high = 18 * unit;
  const x = Math.max(0, Math.min(x1 - unit, width - wide)), y = y1 >= high ? y1 - high : y1;
  context.fillRect(x, y, wide, high);
  context.fillStyle = 0.299 * r + 0.587 * g + 0.114 * b > 110 ? "#000" : "#fff";
  context.fillText(text, x + 4 * unit, y + high / 2);
}

function list() {
  $("rows").replaceChildren();
  answer.detections.forEach((one, i) => {
    const row = $("rows").insertRow(), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${one.rgb})`;
    row.insertCell().append(swatch);
    for (const text of [one.name, one.score.toFixed(3), one.box.map(Math.round).join(", "), one.mask.area.toLocaleString("en-US")]) {
      row.insertCell().textContent = text;
    }
    row.addEventListener("mouseenter", () => draw(i));
    row.addEventListener("mouseleave", () => draw());
  });
}

let shownAt = 0, interval = 0;

function show() {
  const { width, height, detections, milliseconds } = answer, count = detections.length;
  const objects = `${count} ${count === 1 ? "object" : "objects"}`;
  if (playing) {
    const now = performance.now();
    if (shownAt) interval = interval ? 0.8 * interval + 0.2 * (now - shownAt) : now - shownAt;
    shownAt = now;
    say(interval ? `${(1000 / interval).toFixed(1)} fps, ${objects}` : objects);
  } else {
    say(`${objects} in ${width} x ${height} pixels`);
  }
  $("timings").textContent = `Milliseconds: ${Object.entries(milliseconds).map(([stage, ms]) => `${stage} ${ms.toFixed(1)}`).join(", ")}`;
  $("drop").hidden = true;
  $("canvas").hidden = $("result").hidden = $("another").hidden = $("save").hidden = false;
  draw();
  list();
}

// --- Where pictures come from ---

// The pixels of a picture or of a video's present frame.
function grab(source, width, height) {
  if (!(width * height <= MOST_PIXELS)) {
    throw new Error(`it has ${width} x ${height} pixels; at most ${MOST_PIXELS / 1e6} million are taken`);
  }
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return { pixels: context.getImageData(0, 0, width, height).data.buffer, width, height };
}

async function takePicture(file) {
  stop();
  const number = ++current;
  try {
    // Colors as they are in the file, which is what the network was trained on.
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    if (number !== current) return;
    frame = grab(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
  } catch (error) {
    if (number === current) say(`${file.name || "This"} is not a picture that this browser can show: ${error.message}`, true);
    return;
  }
  if (engine) await detect(); else say("The picture waits for the model ...");
}

async function takeVideo(source, what) {
  stop();
  const number = ++current, video = $("video");
  if (typeof source === "string") video.src = source; else video.srcObject = source;
  try {
    await video.play();
  } catch (error) {
    if (number === current) { stop(); say(`${what} cannot be played: ${error.message}`, true); }
    return;
  }
  if (number !== current) return;
  [playing, shownAt, interval] = [true, 0, 0];
  [$("pause").hidden, $("pause").textContent] = [false, "Pause"];
  await play(number);
}

// Takes the frame that is due whenever the one before is done: a slow machine leaves frames out, it does not lag.
async function play(number) {
  const video = $("video");
  while (number === current && playing && !video.ended) {
    if (video.paused || video.readyState < 2 || !engine || pending) {
      await new Promise(done => setTimeout(done, 30));
      continue;
    }
    try {
      frame = grab(video, video.videoWidth, video.videoHeight);
    } catch (error) {
      stop();
      return say(`The video was not processed: ${error.message}`, true);
    }
    await detect();
    await new Promise(done => requestAnimationFrame(done));
  }
  if (number !== current || !playing) return;
  stop();
  say("The clip has ended. This is its last picture.");
}

// Ends a clip or the camera; what was shown last stays.
function stop() {
  const video = $("video");
  current++;
  playing = false;
  $("pause").hidden = true;
  if (video.srcObject) video.srcObject.getTracks().forEach(track => track.stop());
  else if (video.src) URL.revokeObjectURL(video.src);
  video.pause();
  video.srcObject = null;
  video.removeAttribute("src");
}

function take(files) {
  if (!files || !files.length) return;
  const file = files[0];
  if (file.type.startsWith("video/")) takeVideo(URL.createObjectURL(file), file.name); else takePicture(file);
}

async function useCamera() {
  try {
    if (!navigator.mediaDevices) throw new Error("browsers allow it at https:// addresses and at localhost only");
    await takeVideo(await navigator.mediaDevices.getUserMedia({ video: true }), "The camera");
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`, true);
  }
}

function reset() {
  stop();
  frame = answer = null;
  $("drop").hidden = false;
  for (const id of ["canvas", "result", "another", "save"]) $(id).hidden = true;
  $("file").value = "";
  say("");
}

function save() {
  $("canvas").toBlob(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "masks.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

async function changeThreshold() {
  if (!answer || playing || pending) return;
  const result = await engine.call("select", { threshold: threshold() });
  answer = { ...answer, detections: result.detections.map(named) };
  show();
}

function changeCompute() {
  gpuState = "";
  if (gpu) gpu.close();
  [engine, gpu] = [cpu, null];
  describe();
  tryGpu();
}

async function start() {
  if (location.protocol === "file:" && !embedded) {
    return say("Browsers do not load this page from a file. Run 'python -m http.server' in its folder and open " +
      "http://localhost:8000, or export with --format html.", true);
  }
  try {
    config = JSON.parse(new TextDecoder().decode(await bytesOf("model.json")));
    for (const { file, precision, bytes } of config.models) {
      $("model").append(new Option(`${precision.toUpperCase()}, ${megabytes(bytes)}`, file));
    }
    $("model-label").hidden = config.models.length < 2;
    $("compute-label").hidden = !config.runtime.webgpu;
    [$("threshold").min, $("threshold").value] = [config.least, config.threshold];
    $("threshold-value").textContent = threshold().toFixed(2);
    await openModel();
  } catch (error) {
    say(`The model cannot be loaded: ${error.message}`, true);
  }
}

$("file").addEventListener("change", event => take(event.target.files));
$("drop").addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") $("file").click(); });
$("model").addEventListener("change", () => openModel().catch(error => say(`The model cannot be loaded: ${error.message}`, true)));
$("compute").addEventListener("change", changeCompute);
$("threshold").addEventListener("input", () => { $("threshold-value").textContent = threshold().toFixed(2); });
$("threshold").addEventListener("change", changeThreshold);
$("show-boxes").addEventListener("change", () => { draw(); });
$("camera").addEventListener("click", useCamera);
$("another").addEventListener("click", reset);
$("save").addEventListener("click", save);
$("pause").addEventListener("click", () => {
  const video = $("video"), paused = video.paused;
  if (paused) video.play(); else video.pause();
  [$("pause").textContent, shownAt] = [paused ? "Pause" : "Go on", 0];
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, event => { event.preventDefault(); document.body.classList.add("over"); });
}
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", event => take(event.clipboardData.files));
start();
