import { useEffect, useRef } from "preact/hooks";
import type { Tool } from "../core/canvas/drawing";
import { act, filesIn, stage, trying } from "./actions";
import { chooseFile } from "./header";
import { Button, type IconName } from "./icons";
import { choose } from "./live";
import { Stage } from "./stage";
import * as page from "./state";

const TOOLS: [Tool | "picker", IconName, string, string][] = [
  ["brush", "brush", "Brush", "B"],
  ["eraser", "eraser", "Eraser", "E"],
  ["fill", "fill", "Fill", "G"],
  ["picker", "picker", "Pick a colour", "I"],
  ["line", "line", "Line", "U"],
  ["rect", "rect", "Rectangle", ""],
  ["ellipse", "ellipse", "Ellipse", ""],
  ["move", "move", "Move the layer; the wheel scales it", "V"],
];

const SWATCHES = ["#1d1d1f", "#ffffff", "#d62828", "#f77f00", "#fcbf49", "#2a9d4a", "#2176d2", "#7b3fb5", "#8d5a3a"];

export function Tools() {
  return (
    <div class="tools" role="toolbar" aria-label="Drawing tools" aria-orientation="vertical">
      {TOOLS.map(([name, icon, label, keys]) => (
        <Button key={name} icon={icon} label={label} keys={keys} on={page.tool.value === name} run={() => (page.tool.value = name)} />
      ))}
      <hr />
      <Button icon="mask" label="Draw on the mask: only what is red is repainted" keys="M" kind="red" on={page.onMask.value} run={() => act({ do: "mask" })} />
      <hr />
      <Button icon="undo" label="Undo" keys="Control+Z" disabled={!depth()} run={() => act({ do: "undo" })} />
      <Button icon="redo" label="Redo" keys="Control+Y" disabled={!ahead()} run={() => act({ do: "redo" })} />
    </div>
  );
}

function depth(): number {
  return page.drawn.value >= 0 ? (page.drawing.value?.undo.depth ?? 0) : 0;
}

function ahead(): number {
  return page.drawn.value >= 0 ? (page.drawing.value?.undo.ahead ?? 0) : 0;
}

export function InputPane() {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    if (canvas.current) stage.current = new Stage(canvas.current);
    stage.current?.refit();
  }, []);
  const kind = page.input.value;
  return (
    <section class={`pane input ${kind}`} aria-label="Input">
      <div class="frame">
        <canvas ref={canvas} id="stage" tabIndex={0} class={page.tool.value} aria-label={kind === "draw" ? "Drawing" : "What is sent"} />
        {kind === "prompt" && <p class="empty">The words alone decide.<br />Type above: the picture follows.</p>}
        {page.sourceWhy.value && <p class="empty bad" role="alert">{page.sourceWhy}</p>}
      </div>
      <div class="bar">{kind === "draw" ? <BrushBar /> : <SourceBar />}</div>
    </section>
  );
}

function BrushBar() {
  const [first, second] = page.colours.value;
  return (
    <>
      <div class="colours">
        <input type="color" aria-label="Colour" title="Colour" value={first} onInput={(event) => (page.colours.value = [event.currentTarget.value, second])} />
        <button type="button" class="other" title="Swap colours (X)" aria-label="Swap colours" aria-keyshortcuts="X" style={{ background: second }} onClick={() => act({ do: "swap" })} />
      </div>
      <div class="swatches" role="group" aria-label="Colours">
        {SWATCHES.map((colour) => (
          <button key={colour} type="button" aria-label={`Colour ${colour}`} aria-pressed={colour === first} style={{ background: colour }} onClick={() => (page.colours.value = [colour, second])} />
        ))}
      </div>
      <label class="size" title="Brush size ([ and ])">
        <span class="dot" style={{ width: `${dot()}px`, height: `${dot()}px` }} />
        <input type="range" min={1} max={200} value={page.brushSize.value} aria-label="Brush size" onInput={(event) => (page.brushSize.value = Number(event.currentTarget.value))} />
      </label>
      <span class="gap" />
      <Button icon="picture" label="A picture as a layer" run={() => chooseFile("image/*,.json", (file) => filesIn([file]))} />
      <Button icon="fit" label="Fit into the window" keys="0" run={() => act({ do: "fit" })} />
      <Button icon="clear" label="Clear everything" run={() => page.drawing.value?.clearAll()} />
    </>
  );
}

function dot(): number {
  return 4 + 14 * Math.sqrt(page.brushSize.value / 200);
}

function SourceBar() {
  const kind = page.input.value;
  return (
    <>
      {kind === "camera" && (
        <>
          <select aria-label="Camera" value={page.device.value} onChange={(event) => { page.device.value = event.currentTarget.value; trying(() => choose("camera")); }}>
            <option value="">Default camera</option>
            {page.devices.value.map(({ id, label }) => <option key={id} value={id}>{label}</option>)}
          </select>
          <Button icon="mirror" label="Mirror" on={page.mirrored.value} run={() => (page.mirrored.value = !page.mirrored.value)} />
        </>
      )}
      {kind === "screen" && <Button icon="screen" label="Share something else" text="Share something else" run={() => trying(() => choose("screen"))} />}
      {kind === "video" && <Button icon="video" label="Another film" text="Another film" run={() => chooseFile("video/*", (file) => trying(() => choose("video", file)))} />}
      {kind !== "prompt" && <span class="tip">Drag over the picture to choose a part; press twice for all of it.</span>}
      <span class="gap" />
    </>
  );
}
