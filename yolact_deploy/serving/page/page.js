"use strict";
// Sends a picture to /v1/predict of this server and draws the masks that come back. Nothing else is loaded.
const $ = id => document.getElementById(id);
let file = null, picture = null, answer = null, sent = 0;

// The same hues as yolact_deploy.draw: neighbors in the sequence are far apart.
const color = index => `hsl(${Math.round(((0.58 + index * 0.618034) % 1) * 360)} 85% 55%)`;

function fail(message) {
  $("status").textContent = message;
  $("status").className = "wrong";
}

function say(message) {
  $("status").textContent = message;
  $("status").className = "";
}

// COCO's compressed run lengths: 5 bits a character, each run from the third on as the difference to the last but one.
function runs(text) {
  const counts = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const bits = text.charCodeAt(at++) - 48;
      value += (bits & 31) * 2 ** shift;
      more = (bits & 32) !== 0;
      shift += 5;
      if (!more && (bits & 16)) value -= 2 ** shift;
    }
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

// The pixels of a mask as bytes, row by row; runs go down the columns, zeros first.
function pixels(mask) {
  const [height, width] = mask.size, out = new Uint8Array(height * width);
  let at = 0, inside = false, area = 0;
  for (const run of runs(mask.counts)) {
    if (inside) {
      area += run;
      for (let i = at; i < at + run; i++) out[(i % height) * width + Math.floor(i / height)] = 1;
    }
    at += run;
    inside = !inside;
  }
  return { data: out, area };
}

function rgb(index) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = color(index);
  probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data;
}

function draw(highlight) {
  const canvas = $("canvas"), { width, height, detections } = answer;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  for (let i = detections.length - 1; i >= 0; i--) {
    const [r, g, b] = detections[i].rgb, data = detections[i].pixels.data;
    const strength = highlight === undefined ? 0.5 : highlight === i ? 0.75 : 0.15;
    for (let p = 0, q = 0; p < data.length; p++, q += 4) {
      if (!data[p]) continue;
      image.data[q] += (r - image.data[q]) * strength;
      image.data[q + 1] += (g - image.data[q + 1]) * strength;
      image.data[q + 2] += (b - image.data[q + 2]) * strength;
    }
  }
  context.putImageData(image, 0, 0);
  if (!$("show-boxes").checked) return;
  for (let i = detections.length - 1; i >= 0; i--) drawBox(context, detections[i], i);  // the best on top
}

function drawBox(context, one, index) {
  const unit = Math.max(1, Math.max(context.canvas.width, context.canvas.height) / 640);
  const [x1, y1, x2, y2] = one.box, text = `${one.name} ${one.score.toFixed(2)}`;
  context.strokeStyle = context.fillStyle = color(index);
  context.lineWidth = 2 * unit;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.font = `${Math.round(13 * unit)}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const wide = context.measureText(text).width + 6 * unit, high = 17 * unit;
  const x = Math.max(0, Math.min(x1, context.canvas.width - wide)), y = y1 >= high ? y1 - high : y1;
  context.fillRect(x, y, wide, high);
  const [r, g, b] = one.rgb;
  context.fillStyle = 0.299 * r + 0.587 * g + 0.114 * b > 110 ? "#000" : "#fff";
  context.fillText(text, x + 3 * unit, y + 2 * unit);
}

function cell(row, content) {
  const td = row.insertCell();
  if (content instanceof Node) td.append(content); else td.textContent = content;
}

function list() {
  $("rows").replaceChildren();
  answer.detections.forEach((one, i) => {
    const row = $("rows").insertRow(), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = color(i);
    cell(row, swatch);
    cell(row, one.name);
    cell(row, one.score.toFixed(3));
    cell(row, one.box.map(Math.round).join(", "));
    cell(row, one.pixels.area.toLocaleString("en-US"));
    row.addEventListener("mouseenter", () => draw(i));
    row.addEventListener("mouseleave", () => draw());
  });
}

async function send() {
  if (!file) return;
  const number = ++sent, start = performance.now();
  say("Detecting ...");
  const query = new URLSearchParams({ score_threshold: $("threshold").value });
  if ($("model").value) query.set("model", $("model").value);
  try {
    const response = await fetch(`v1/predict?${query}`, {
      method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream", "Accept": "application/json" },
    });
    const values = await response.json();
    if (number !== sent) return;  // a later request is on its way
    if (!response.ok) return fail(values.error || `The server answered ${response.status}.`);
    $("json").textContent = JSON.stringify(values, null, 1);
    values.detections.forEach((one, i) => { one.pixels = pixels(one.mask); one.rgb = rgb(i); });
    const bitmap = await createImageBitmap(file);
    if (number !== sent) return;
    [picture, answer] = [bitmap, values];
    show(performance.now() - start);
  } catch (error) {
    if (number === sent) fail(`The picture was not processed: ${error.message}`);
  }
}

function show(milliseconds) {
  const count = answer.detections.length;
  say(`${count} ${count === 1 ? "object" : "objects"} in ${answer.width} x ${answer.height} pixels`);
  const stages = Object.entries(answer.timings_ms).map(([stage, ms]) => `${stage} ${ms.toFixed(1)}`).join(", ");
  $("timings").textContent = `Milliseconds: ${stages}; ${milliseconds.toFixed(0)} in all, with the transfer`;
  $("drop").hidden = true;
  $("canvas").hidden = $("result").hidden = false;
  draw();
  list();
}

function take(files) {
  if (!files || !files.length) return;
  file = files[0];
  send();
}

function reset() {
  sent++;
  file = answer = picture = null;
  $("drop").hidden = false;
  $("canvas").hidden = $("result").hidden = true;
  $("file").value = "";
  say("");
}

async function start() {
  try {
    const { models } = await (await fetch("v1/models")).json();
    for (const { name } of models) $("model").append(new Option(name, name));
    $("model-label").hidden = models.length < 2;
    const least = Math.ceil(models[0].score_threshold * 100) / 100;
    $("threshold").min = $("threshold").value = least;
    $("threshold-value").textContent = least.toFixed(2);
  } catch (error) {
    fail(`The server does not answer: ${error.message}`);
  }
}

$("file").addEventListener("change", event => take(event.target.files));
$("drop").addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") $("file").click(); });
$("model").addEventListener("change", send);
$("threshold").addEventListener("input", event => { $("threshold-value").textContent = (+event.target.value).toFixed(2); });
$("threshold").addEventListener("change", send);
$("show-boxes").addEventListener("change", () => { if (answer) draw(); });
$("another").addEventListener("click", reset);
$("save").addEventListener("click", () => $("canvas").toBlob(blob => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "masks.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}));
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
