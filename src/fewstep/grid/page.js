"use strict";
const $ = (id) => document.getElementById(id);
const cells = JSON.parse($("cells").textContent);
const button = (cell) => $("cell-" + cell.number);
const key = (place) => place.join(",");
const painted = new Map(cells.filter(button).map((cell) => [key(cell.place), cell]));
const ends = [0, 1, 2].map((side) => Math.max(...cells.map((cell) => cell.place[side])));
let open = null, pinned = null;

function show(cell, other = false) {
  $("large").src = button(cell).firstChild.src;
  $("large").alt = $("name").textContent = cell.labels.join(" · ");
  $("name").classList.toggle("other", other);
}

function view(cell) {
  open = cell;
  show(cell);
  const image = button(cell).firstChild;
  const facts = [...cell.axes, ["picture", image.getAttribute("width") + " × " + image.getAttribute("height")]];
  if (cell.ms !== null) facts.push(["time", cell.ms + " ms"]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [["dt", name], ["dd", value]].map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: text }))));
  $("text").textContent = cell.text;
  $("file").href = cell.file;
  $("pin").setAttribute("aria-pressed", String(pinned === cell));
  if (!$("zoom").open) $("zoom").showModal();
}

function walk(side, by) {
  const place = [...open.place];
  for (place[side] += by; place[side] >= 0 && place[side] <= ends[side]; place[side] += by) {
    const next = painted.get(key(place));
    if (next) return view(next);
  }
}

function pin() {
  if (pinned) button(pinned).classList.remove("pinned");
  pinned = pinned === open ? null : open;
  if (pinned) button(pinned).classList.add("pinned");
  $("pinned").textContent = pinned ? "pinned: " + pinned.labels.join(", ") : "";
  view(open);
}

function hold(on) {
  if (open && pinned) show(on ? pinned : open, on);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(open.text);
  } catch {
    const range = document.createRange();
    range.selectNodeContents($("text"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  $("copy").textContent = "copied";
  setTimeout(() => { $("copy").textContent = "copy settings"; }, 900);
}

function choose(z) {
  for (const part of document.querySelectorAll("section")) part.hidden = z !== "all" && part.dataset.z !== z;
  for (const choice of document.querySelectorAll(".switch button")) choice.setAttribute("aria-pressed", String(choice.dataset.z === z));
}

const keys = {
  ArrowLeft: () => walk(0, -1), ArrowRight: () => walk(0, 1), ArrowUp: () => walk(1, -1), ArrowDown: () => walk(1, 1),
  "[": () => walk(2, -1), "]": () => walk(2, 1), PageUp: () => walk(2, -1), PageDown: () => walk(2, 1),
  p: pin, c: copy, " ": () => hold(true), 1: () => $("large").classList.toggle("true"),
};

for (const cell of painted.values()) button(cell).addEventListener("click", () => view(cell));
for (const choice of document.querySelectorAll(".switch button")) choice.addEventListener("click", () => choose(choice.dataset.z));
document.addEventListener("keydown", (event) => {
  if (!$("zoom").open || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  if (!(event.repeat && event.key === " ")) keys[event.key]();
});
document.addEventListener("keyup", (event) => { if (event.key === " ") { event.preventDefault(); hold(false); } });
for (const id of ["large", "compare"]) {
  $(id).addEventListener("pointerdown", (event) => { event.preventDefault(); hold(true); });
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) $(id).addEventListener(end, () => hold(false));
}
window.addEventListener("blur", () => hold(false));
$("pin").addEventListener("click", pin);
$("copy").addEventListener("click", copy);
$("close").addEventListener("click", () => $("zoom").close());
$("zoom").addEventListener("close", () => { if (open) button(open).focus(); open = null; });
const largest = Math.max(...[...painted.values()].map((cell) => Number(button(cell).firstChild.getAttribute("width"))));
$("size").value = String(Math.min(256, Math.max(128, largest)));
const resize = () => document.documentElement.style.setProperty("--cell", $("size").value + "px");
$("size").addEventListener("input", resize);
resize();
choose("all");
